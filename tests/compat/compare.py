"""Stage directories as this environment reads them, beside how another one does (`make compat`): those given, or each rung once.

python tests/compat/compare.py .venv-compat/bin/python [out/nano/sft ...]
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for the rungs in miniature
IDS = torch.arange(5, 45).reshape(2, 20)
TEXTS = ["Where does Ada live? 12  34\n\n5", "naïve £½ <|im_start|>user\nHi<|im_end|>\n"]
CHAT = [{"role": "user", "content": "Where does Ada live?"}, {"role": "assistant", "content": "Dorn."}]


def expect(directory: str) -> dict:
    """Logits, tokens, a chat and a reply of one stage directory."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "padding_side", "model_max_length")}
    found = {
        "directory": str(Path(directory).resolve()),
        "special": special,
        "texts": TEXTS,
        "tokens": tokenizer(TEXTS)["input_ids"],
        "chat": CHAT,
        "asked": tokenizer.apply_chat_template(CHAT, tokenize=False),
    }
    if not Path(directory, "config.json").is_file():  # the tokenizer's rung
        return found
    scores = any("SequenceClassification" in name for name in AutoConfig.from_pretrained(directory).architectures)
    model = (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS).logits
    question = "Certainly. Ada lives in Dorn." if scores else CHAT[:1]
    # pipeline() of 4.57 samples up to 256 tokens whatever generation_config.json says, unless it is told otherwise.
    settings = {} if scores else {"do_sample": False, "max_new_tokens": 16}
    said = pipeline("text-classification" if scores else "text-generation", directory)(question, **settings)[0]
    said = said["score"] if scores else said["generated_text"]
    found |= {"scores": scores, "ids": IDS.tolist(), "logits": logits.tolist()}
    return found | {"question": question, "settings": settings, "said": said}


def train(root: Path) -> list[Path]:
    """Every rung in miniature, one with another base of RoPE (transformers 5 writes it where 4 does not look), and shards."""
    from groundup import export
    from groundup.toyland import write_world
    from recipes.miniature import Rungs, run_recipe

    (root / "world").mkdir()
    write_world(root / "world", seed=0, documents=400, held_out=40)
    rungs = Rungs(root, root / "world")
    done = [rungs[name].directory for name in ("tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "grpo")]
    settings = rungs.settings("pretrain")
    settings["model_config"] |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "tie_word_embeddings": False}
    turned = run_recipe("pretrain", root / "rope", **settings).directory
    shards = export.write_shards(*export.load(root / "sft"), root / "sft", root / "shards", "20KB", "bf16")
    return [root / "random", *done, turned, shards]


def main(interpreter: str, *directories: str) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(directory) for directory in directories] or train(Path(temporary))
        stages = {path.name: expect(str(path)) for path in paths}
        expected = Path(temporary) / "expected.json"
        expected.write_text(json.dumps(stages), encoding="utf-8")
        return subprocess.run([interpreter, str(HERE / "check.py"), str(expected)]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
