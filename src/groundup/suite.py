"""The files of an evaluation, read once, and put to one model after another; and the tasks of lm-evaluation-harness."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import torch
from groundup import record
from groundup.configs import DataArguments
from groundup.data import load_documents
from groundup.errors import InputError
from groundup.evaluation import (
    EvaluationArguments,
    Model,
    evaluate_causal,
    figure,
    how,
    load_function,
    pair_accuracy,
    sampled_replies,
)
from groundup.model import check_model_path, load_whole
from groundup.reading import is_reward_model
from groundup.sources import find_files
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

FILES = {  # field of EvaluationArguments -> the keys its rows must have; the first is what is looked for in training data
    "documents": ("text",),
    "cloze": ("prompt", "choices", "gold"),
    "choices": ("query", "choices", "gold"),
    "questions": ("prompt", "answer"),
    "instructions": ("prompt", "answer"),
    "preferences": ("prompt", "chosen", "rejected"),
    "problems": ("question", "answer"),
    "harder": ("question", "answer"),
}


def read_rows(path: str, keys: tuple[str, ...], name: str) -> list[dict]:
    """Rows of an evaluation file, JSON lines, perhaps gzip'd; documents may be whatever pre-training takes.

    Raises:
        InputError: no such file, a line that is no JSON object, or one that lacks a key or has something else there than it should.
    """
    if name == "documents" and not path.endswith((".jsonl", ".jsonl.gz")) and find_files(path):
        return list(load_documents(DataArguments(dataset=path)).rows)
    if not Path(path).is_file():
        raise InputError("no such evaluation file", f"{name}: {path}", f"leave `{name}` out, or make it (groundup.toyland)")
    rows = []
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:  # bytes: json tells of bad UTF-8, and knows a BOM
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"not JSON: {error}", f"{path}:{number}") from None
            lacking = [key for key in keys if key not in row] if isinstance(row, dict) else list(keys)
            if lacking:
                raise InputError(f"the row lacks {', '.join(lacking)}", f"{path}:{number}", f"rows of `{name}` have {keys}")
            if wrong := _amiss(row, keys):
                raise InputError(wrong, f"{path}:{number}")
            rows.append(row)
    if not rows:
        raise InputError("an empty evaluation file", f"{name}: {path}")
    return rows


def _amiss(row: dict, keys: tuple[str, ...]) -> str | None:
    """What would be measured wrongly in silence: `gold: "2"` is no choice's number, and no answer is ever equal to it."""
    for key in (*keys, *({"alternatives"} & row.keys())):
        if key in ("choices", "alternatives"):
            if not isinstance(row[key], list) or not all(isinstance(text, str) and text for text in row[key]):
                return f"`{key}` is no list of texts"
        elif key == "gold":
            if type(row[key]) is not int or not 0 <= row[key] < len(row["choices"]):
                return f"`gold: {row[key]!r}` is the number of none of its {len(row['choices'])} choices, which begin with 0"
        elif not isinstance(row[key], (str, int, float) if (key, keys[0]) == ("answer", "question") else str):
            return f"`{key}` is no text"
    return None


@torch.inference_mode()
def _check_causal(model: PreTrainedModel, path: str) -> None:
    """transformers makes a causal model of BERT, too, which reads both ways, and so knows what it is asked to foresee."""
    rows = torch.tensor([[1] + [2] * 7, [1] + [3] * 7], device=model.device)
    one, other = model(input_ids=rows).logits[:, 0].float()
    if (one - other).norm() > 1e-3 * one.norm():
        raise InputError(f"`{path}` sees the tokens that come after: it is no causal model", "models", "name one that writes text")


class Suite:
    """What `EvaluationArguments` ask for.

    Args:
        task_files: folder of task files of our own for the harness.

    Raises:
        InputError: whatever can be known to be amiss before a model is loaded.
    """

    def __init__(self, args: EvaluationArguments, task_files: Path | None = None):
        self.args = args
        self.rows = {
            name: read_rows(path, keys, name)[: args.max_rows] for name, keys in FILES.items() if (path := getattr(args, name))
        }
        if args.taste:
            load_function(args.taste)
            if not args.reference or "questions" not in self.rows:
                raise InputError("a win rate needs `reference` and `questions`", "taste", "name both, or leave `taste` out")
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self.settings = {
            **asdict(args),
            "decoding": "greedy; pass@k and win rate sampled at temperature 1",
            "prompt": "one user turn",
        }
        # What lies under the names in the settings: a model is measured again when it has changed.
        self.asked = {
            "rows_sha256": record.hash_items(self.rows.items()),
            "reference_sha256": record.hash_weights(args.reference) if args.reference else None,
        }
        self.tasks = None
        if args.tasks:
            try:
                from groundup.harness import Tasks
            except ImportError as error:
                fix = "pip install 'groundup[eval]'"
                raise InputError(f"lm-evaluation-harness is not all there: {error}", "tasks", fix) from None
            self.tasks = Tasks(args, task_files)
        texts = {name: [[row[FILES[name][0]]] for row in rows] for name, rows in self.rows.items()}
        self.texts = texts | (self.tasks.texts if self.tasks else {})  # by file or task: of each item, what identifies it
        self._reference: Model | None = None
        self._reference_replies: list | None = None

    def load(self, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
        """Model, tokenizer, and whether it is a reward model."""
        check_model_path(path)
        try:
            config = AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"no model `{path}`: {reason}", "models", "check the path, or the id and the network") from None
        is_reward = is_reward_model(config)
        kind = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        model = load_whole(kind, path, "models", dtype=dtype).to(self.device).eval()
        if is_reward and config.num_labels != 1:
            raise InputError(f"`{path}` sorts text into {config.num_labels} classes and gives it no score", "models")
        if not is_reward:
            _check_causal(model, path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        if is_reward:  # transformers reads the head at the last token that is none of the config's padding: rows must end in that
            text = model.config.get_text_config()
            known = (text.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
            text.pad_token_id = tokenizer.pad_token_id = next(pad for pad in known if pad is not None)
        return model, tokenizer, is_reward

    def reference_replies(self) -> list | None:
        if not self.args.taste:
            return None
        if self._reference_replies is None:
            model, tokenizer, _ = self.load(self.args.reference)
            self._reference = Model(model, tokenizer, self.args.batch_size)
            self._reference_replies = sampled_replies(self._reference, self.rows["questions"], self.args, seed=self.args.seed)
        return self._reference_replies

    def evaluate(self, path: str) -> dict:
        """`metrics`, `by_difficulty` and `samples` of the model at `path`."""
        model, tokenizer, is_reward = self.load(path)
        asked = Model(model, tokenizer, self.args.batch_size)
        if not is_reward:
            replies = self.reference_replies()
            other = self._reference if path != self.args.reference else None
            if other and other.tokenizer.get_vocab() != tokenizer.get_vocab():
                other = None
            found = evaluate_causal(asked, self.rows, self.args, replies, other)
            for name in {"true_win_rate", "kl_from_reference"} & set(found["metrics"]):  # figures over another are not comparable
                found["metrics"][name]["reference_sha256"] = self.asked["reference_sha256"]
            if self.tasks:
                found["metrics"].update(self.tasks.measure(asked))
            return found
        if "preferences" not in self.rows:
            raise InputError(f"`{path}` is a reward model", "preferences", "name a file of held-out pairs")
        right = pair_accuracy(model, tokenizer, self.rows["preferences"], self.args.batch_size)
        accuracy = figure(right, self.rows["preferences"]) | how("pair_accuracy", asked.template, self.args.seed)
        return {"metrics": {"pair_accuracy": accuracy}, "by_difficulty": {}, "samples": []}
