"""Whether transformers 4.57 reads stage directories as transformers 5 does: the same logits, tokens, chats and replies.

It runs in an environment of its own, without groundup, on what compare.py wrote in the main one (`make compat`).

.venv-compat/bin/python tests/compat/check.py expected.json
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

NEAR = 1e-5


def check(directory, expected):
    """What differs, as words; nothing if all is the same."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    wrong = [name for name in expected["special"] if getattr(tokenizer, name) != expected["special"][name]]
    wrong += ["tokens"] * (tokenizer(expected["texts"])["input_ids"] != expected["tokens"])
    wrong += ["chat template"] * (tokenizer.apply_chat_template(expected["chat"], tokenize=False) != expected["asked"])
    if "logits" not in expected:
        return wrong, 0.0
    kind = AutoModelForSequenceClassification if expected["scores"] else AutoModelForCausalLM
    model, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    wrong += [name for name, found in info.items() if found]
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor(expected["ids"])).logits
    far = (logits - torch.tensor(expected["logits"])).abs().max().item()
    wrong += ["logits"] * (not far <= NEAR)
    asked = pipeline("text-classification" if expected["scores"] else "text-generation", directory)
    said = asked(expected["question"], **expected["settings"])[0]
    said = said["score"] if expected["scores"] else said["generated_text"]
    same = abs(said - expected["said"]) <= NEAR if expected["scores"] else said == expected["said"]
    wrong += [f"pipeline: {said!r}"] * (not same)
    return wrong, far


def main(path):
    with open(path, encoding="utf-8") as file:
        expected = json.load(file)
    assert not any(name.startswith("groundup") for name in sys.modules)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print(f"{'stage':12} {'logits off by':>14}  differs")
    failed = False
    for name, stage in expected.items():
        try:
            wrong, far = check(stage["directory"], stage)
        except (ValueError, KeyError, OSError, AttributeError, TypeError, RuntimeError) as error:  # what loading raises
            wrong, far = [f"{type(error).__name__}: {str(error)[:200]}"], float("nan")
        failed |= bool(wrong)
        print(f"{name:12} {far:14.1e}  {'; '.join(wrong) or 'nothing'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
