"""What a rung will compute: model, batch, lengths, steps and rollouts, read from its YAML before anything is run."""

import contextlib
import dataclasses
import glob
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from groundup.command_line import dataclass_fields, parse, read_yaml
from groundup.configs import (
    CurriculumArguments,
    DataArguments,
    GateArguments,
    ModelArguments,
    PrepareArguments,
    RehearsalArguments,
    RewardArguments,
    RunArguments,
    TokenizerArguments,
)
from groundup.data import load_conversations, load_preferences, load_prompts
from groundup.errors import InputError
from groundup.model import config_from_arguments
from groundup.ppo import PPOConfig
from groundup.pretraining import apply_dial
from groundup.reading import reading
from groundup.record import read_json
from groundup.shards import is_prepared, read_manifest
from groundup.sources import SUFFIXES, list_sources, mix
from transformers import AutoConfig, AutoTokenizer, TrainingArguments
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig, SFTConfig

TYPES: dict[str, tuple[type, ...]] = {  # what each recipe parses
    "tokenizer": (DataArguments, TokenizerArguments),
    "prepare": (DataArguments, PrepareArguments),
    "pretrain": (DataArguments, ModelArguments, TrainingArguments, RunArguments),
    "sft": (DataArguments, SFTConfig, ModelConfig, RunArguments),
    "reward": (DataArguments, RewardConfig, ModelConfig, RunArguments),
    "dpo": (DataArguments, DPOConfig, ModelConfig, RunArguments),
    "ppo": (DataArguments, RewardArguments, PPOConfig, ModelConfig, RunArguments),
    "grpo": (
        DataArguments,
        RehearsalArguments,
        RewardArguments,
        GateArguments,
        CurriculumArguments,
        GRPOConfig,
        ModelConfig,
        RunArguments,
    ),
}
MARKS = {  # keys without which a YAML is none of the rung's
    "tokenizer": {"vocab_size"},
    "prepare": {"tokenizer_path", "output_dir"},
    "pretrain": {"tokenizer_path"},
    "sft": {"model_name_or_path"},
    "reward": {"model_name_or_path"},
    "dpo": {"model_name_or_path"},
    "ppo": {"rewards"},
    "grpo": {"rewards"},
}
LOADERS: dict[str, Callable] = {
    "sft": load_conversations,
    "reward": load_preferences,
    "dpo": load_preferences,
    "ppo": load_prompts,
    "grpo": load_prompts,
}
# Rows on the Hub by dataset, configuration and split, as huggingface.co/datasets shows them: an epoch is planned without a network.
HUB_ROWS = {
    ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs"): 61_100,
    ("HuggingFaceTB/smoltalk", "all", "train"): 1_040_000,
    ("openai/gsm8k", "main", "train"): 7_473,
}
FINEWEB = ("HuggingFaceFW/fineweb-edu", 1_030)  # tokens a row: of its sample "10BT", 9.67 M rows
READ = 64 * 2**20  # bytes of local data that are read to count rows; of more, a part
SAMPLE = 512  # rows whose tokens are counted
GZIP = 3  # bytes of text in a byte of .gz
DIALLED = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs")
BYTES_A_TOKEN = 4.0  # of English text with 32768 tokens of vocabulary


@dataclass
class Workload:
    """One rung's computation. Lengths are in tokens and hold padding; `rows` of None: not known.

    `micro` rows a forward pass, of `length` tokens in the mean and `longest` at most; `prompt` and `completion` tokens of a
    rollout, `rollout` completions generated at once on a device, `rollouts` generations in all.
    """

    rung: str
    source: str
    args: Any  # the rung's training arguments
    model: Any  # transformers configuration; None for the tokenizer
    others: list[tuple[str, Any]] = field(
        default_factory=list
    )  # of DPO, PPO and GRPO: ("ref" | "reward" | "critic", configuration)
    world: int = 1
    micro: int = 1
    sides: int = 1  # rows of a pair that go through the model together
    accumulation: int = 1
    length: int = 0
    longest: int = 0
    steps: int | None = None
    rows: int | None = None
    text_bytes: int = 0  # of local files
    eval_bytes: int = 0
    prompt: int = 0
    completion: int = 0
    rollout: int = 0
    rollouts: float = 0.0
    packing: str = "wrapped"
    counted: bool = True  # whether lengths are those of the data; else they are the most that there may be
    settings: Any = None  # of pre-training: its ModelArguments
    assumed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step on all devices, padding included."""
        return self.micro * self.sides * self.accumulation * self.world * self.length


def deduce_rung(path: str, keys: set[str]) -> str:
    """The rung whose YAML has these keys; the file's name decides between several.

    Raises:
        InputError: none, or several.
    """
    fitting = [
        rung for rung, types in TYPES.items() if keys - {"env"} <= dataclass_fields(types).keys() and MARKS.get(rung, set()) <= keys
    ]
    named = [rung for rung in fitting if rung in Path(path).stem]
    if len(fitting) != 1 and len(named) != 1:
        what = f"this could be {' or '.join(fitting)}" if fitting else "the keys are those of no rung"
        raise InputError(what, path, f"say `--rung`, one of {', '.join(TYPES)}")
    return fitting[0] if len(fitting) == 1 else named[0]


def read_keys(path: Path) -> dict[str, Any]:
    """A YAML as it stands, an empty mapping where it is none; checked later, when it is parsed."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def read_workload(
    path: str, rung: str | None = None, world: int = 1, rows: int | None = None, overrides: Sequence[str] = ()
) -> Workload:
    """The workload of a rung's YAML.

    Args:
        world: devices.
        rows: of its data set, where they cannot be counted.
        overrides: `--key value` as on the recipe's command line.

    Raises:
        InputError: what the recipe itself would refuse, or a model that nothing here writes.
    """
    if rung is None:
        everything = dict.fromkeys((key for types in TYPES.values() for key in dataclass_fields(types)), Any)
        rung = deduce_rung(path, set(read_yaml(path, everything)))
    given = parse(TYPES[rung], ["--config", path, *overrides])
    return describe(rung, given, world, rows, path)


def describe(rung: str, given: tuple, world: int, rows: int | None = None, path: str = "") -> Workload:
    """The workload of a rung's parsed arguments; `path`, its YAML, is where rungs that have not run yet are looked for."""
    of = {type(argument): argument for argument in given}
    if rung in ("tokenizer", "prepare"):
        args = of[TokenizerArguments if rung == "tokenizer" else PrepareArguments]
        load = Workload(rung, path, args, None, text_bytes=text_bytes(of[DataArguments]))
        if not load.text_bytes and of[DataArguments].dataset == FINEWEB[0] and (rows := rows or of[DataArguments].max_rows):
            load.text_bytes = int(rows * FINEWEB[1] * BYTES_A_TOKEN)
            load.assumed.append(f"{FINEWEB[1]:,} tokens a row of {FINEWEB[0]}")
        if rung == "tokenizer":
            load.text_bytes = min(load.text_bytes, args.max_characters)
        if not load.text_bytes:
            load.unknown.append("tokens, time and disk: the text is not here to be measured")
        return load
    args = next(argument for argument in given if isinstance(argument, TrainingArguments))
    load = Workload(rung, path, args, None, world=world)
    load.micro, load.accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    load.text_bytes, load.eval_bytes = text_bytes(of[DataArguments]), text_bytes(of[DataArguments], "eval")
    if rung == "pretrain":
        _describe_pretraining(load, of[DataArguments], of[ModelArguments], rows)
    else:
        _describe_tuning(load, of, rows)
    return load


def _describe_pretraining(load: Workload, data: DataArguments, model: ModelArguments, rows: int | None) -> None:
    vocabulary = _vocabulary(model.tokenizer_path, load)
    load.model, load.settings = config_from_arguments(model, vocabulary), model
    args = SimpleNamespace(**{name: getattr(load.args, name) for name in DIALLED}, world_size=load.world)
    apply_dial(args, model, len(vocabulary))
    load.micro, load.accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    load.length = load.longest = model.max_length
    writer = writer_of(data.dataset or "", load.source)
    load.packing = read_keys(writer).get("packing", "wrapped") if writer else model.packing
    batch = load.micro * load.accumulation * load.world
    if is_prepared(data.dataset):
        manifest = read_manifest(data.dataset)
        train, load.packing = manifest["splits"]["train"], manifest["packing"]
        load.rows = train.get("rows") or train["tokens"] // model.max_length
    elif rows or load.text_bytes:
        load.rows = rows or int(load.text_bytes / BYTES_A_TOKEN / model.max_length)
        if not rows and args.max_steps <= 0:
            load.assumed.append(f"{BYTES_A_TOKEN:g} bytes of text a token")
    if args.max_steps > 0:
        load.steps = args.max_steps
    elif load.rows:
        load.steps = math.ceil(args.num_train_epochs * load.rows / batch)
    else:
        load.unknown.append("steps: the data is not here; give `max_steps`, `depth`, or `--rows` (blocks)")


def _describe_tuning(load: Workload, of: dict[type, Any], rows: int | None) -> None:
    args, data, settings = load.args, of[DataArguments], of[ModelConfig]
    if settings.load_in_4bit or settings.load_in_8bit or settings.use_peft:
        load.unknown.append("adapters and quantised weights: planned as if all weights were trained in float32")
    load.model = model_config(settings.model_name_or_path, load)
    load.rows, lengths = count_rows(load.rung, data, settings.model_name_or_path, rows, load)
    load.sides, load.counted = 2 if load.rung in ("reward", "dpo") else 1, bool(lengths)
    batch = load.micro * load.accumulation * load.world
    if load.rung in ("sft", "reward", "dpo"):
        limit = args.max_length or load.model.max_position_embeddings
        load.longest = min(limit, max(lengths, default=limit))
        load.length = padded(lengths, load.micro, limit, args.train_sampling_strategy == "group_by_length")
        if not lengths:
            load.assumed.append(f"rows of {limit} tokens (`max_length`): the data is not here to be counted")
        if load.rung == "dpo":
            load.others.append(("ref", load.model))
    else:
        load.prompt = round(padded(lengths, args.per_device_train_batch_size, 10**9, False)) if lengths else 256
        if not lengths:
            load.assumed.append("prompts of 256 tokens: the data is not here to be counted")
        load.completion = args.max_completion_length
        load.length = load.prompt + load.completion
        load.longest = min(max(lengths, default=load.prompt) + load.completion, load.model.max_position_embeddings)
        load.assumed.append(f"the longest completion of a batch takes all {load.completion} tokens (`max_completion_length`)")
        load.rollout = args.per_device_train_batch_size * args.steps_per_generation
        _other_models(load, of)
    if args.max_steps > 0:
        load.steps = args.max_steps
    elif load.rows:
        load.steps = max(1, int(args.num_train_epochs * load.rows * (args.num_generations if load.rollout else 1) / batch))
    else:
        load.unknown.append("steps: rows of the data set are not known; give `--rows`")
    if load.rollout:
        load.rollouts = (load.steps or 0) * load.accumulation / (args.steps_per_generation * args.num_iterations)


def _other_models(load: Workload, of: dict[type, Any]) -> None:
    models = [entry["model"] for entry in of[RewardArguments].rewards if "model" in entry]
    load.others += [("reward", model_config(path, load)) for path in models]
    args = load.args
    if load.rung == "ppo" and not args.shared_critic:
        load.others.append(("critic", model_config(args.critic_model_name_or_path or (models or [None])[0], load) or load.model))
    if args.kl_coef if load.rung == "ppo" else args.beta:
        load.others.append(("ref", load.model))


class Vocabulary:
    """Stands in for a tokenizer that is not trained yet: its size is all that a model's size needs."""

    eos_token_id, pad_token_id = 1, 2

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


def _vocabulary(path: str, load: Workload):
    if (Path(path) / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(path)
    writer = writer_of(path, load.source)
    if writer and "vocab_size" in (keys := read_keys(writer)):
        load.assumed.append(f"a vocabulary of {keys['vocab_size']}, from {writer.name}: {path} is not there yet")
        return Vocabulary(keys["vocab_size"])
    if tokenizer := _from_hub(AutoTokenizer, path):
        return tokenizer
    raise InputError(f"no tokenizer in `{path}`, and no YAML beside this one writes it", load.source, "pass `--tokenizer_path`")


def model_config(path: str | None, load: Workload, through: tuple[str, ...] = ()):
    """The configuration of a model that is there, that a YAML beside this one will write, or that is on the Hub.

    Raises:
        InputError: none of these.
    """
    if not path:
        return None
    if (Path(path) / "config.json").is_file():
        with reading(path):
            return AutoConfig.from_pretrained(path)
    if adapter := read_json(Path(path) / "adapter_config.json"):
        return model_config(adapter["base_model_name_or_path"], load, through)
    if writer := writer_of(path, load.source):
        keys = read_keys(writer)
        if "tokenizer_path" in keys:
            model = ModelArguments(**{f.name: keys[f.name] for f in dataclasses.fields(ModelArguments) if f.name in keys})
            return config_from_arguments(model, _vocabulary(model.tokenizer_path, dataclasses.replace(load, source=str(writer))))
        if path in through:
            raise InputError(f"the YAML files name each other in a circle: {' <- '.join([*through, path])}", load.source)
        return model_config(keys.get("model_name_or_path"), dataclasses.replace(load, source=str(writer)), (*through, path))
    if config := _from_hub(AutoConfig, path):
        return config
    fix = "run the rung that writes it, plan it in the directory of its YAML, or pass `--model_name_or_path`"
    raise InputError(f"no model in `{path}`, and no YAML beside this one writes it", load.source, fix)


def writer_of(path: str, source: str) -> Path | None:
    """The YAML in the directory of `source` whose `output_dir` is `path`."""
    found = sorted(Path(source).parent.glob("*.yaml")) if source else []
    return next((p for p in found if p.name != Path(source).name and read_keys(p).get("output_dir") == path), None)


def _from_hub(kind: type, path: str):
    """The tokenizer or configuration of an id on the Hub; None where it is none, or is not to be had."""
    if path.count("/") == 1 and not path.startswith((".", "/", "~", "out/")):
        with contextlib.suppress(OSError, ValueError):
            return kind.from_pretrained(path)
    return None


def text_bytes(data: DataArguments, which: str = "train") -> int:
    """Bytes of the local files that a rung reads, for training or "eval"; 0 when they are not here."""
    names = [source.dataset for source in list_sources(data, which)[0]]
    files = {
        path
        for name in names
        for path in (Path(name).rglob("*") if Path(name).is_dir() else map(Path, glob.glob(name, recursive=True)))
        if path.is_file() and path.name.lower().endswith(SUFFIXES)
    }
    return sum(path.stat().st_size * (GZIP if path.suffix == ".gz" else 1) for path in files)


def eval_share(load: Workload) -> float:
    """Held-out rows for one of training, by the sizes of their files."""
    return load.eval_bytes / load.text_bytes if load.text_bytes else 0.0


def count_rows(rung: str, data: DataArguments, model: str, rows: int | None, load: Workload) -> tuple[int | None, list[int]]:
    """Rows of the data set, and the lengths in tokens of up to SAMPLE of them; what is not here is not guessed."""
    if not load.text_bytes:
        return rows or hub_rows(data, load), []
    part = None
    if load.text_bytes > READ:
        part = 4 * SAMPLE
        load.assumed.append(f"lengths are those of the first {part} rows")
    loaded = LOADERS[rung](dataclasses.replace(data, max_rows=min(part or 10**12, data.max_rows or 10**12)) if part else data)
    found = rows or (len(loaded.rows) if part is None else data.max_rows)
    if not (Path(model) / "tokenizer.json").is_file():
        return found, []
    tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        return found, []
    chosen = random.Random(0).sample(range(len(loaded.rows)), min(SAMPLE, len(loaded.rows)))
    return found, [_length(row, tokenizer) for row in loaded.rows.select(chosen)]


def hub_rows(data: DataArguments, load: Workload) -> int | None:
    """Rows of a data set on the Hub or a mixture of some; None where one is not known."""
    sources, weights = list_sources(data, "train")
    known = [HUB_ROWS.get((source.dataset, source.dataset_config, source.dataset_split)) for source in sources]
    sizes = [min(size or 10**12, source.max_rows or 10**12) for size, source in zip(known, sources, strict=True)]
    if max(sizes) == 10**12:
        return None
    load.assumed += [
        f"about {n:,} rows in {source.dataset}, as the Hub shows them" for n, source in zip(known, sources, strict=True) if n
    ]
    return len(mix(sizes, weights or [None], data.max_rows, 0)) if len(sizes) > 1 else min(sizes[0], data.max_rows or sizes[0])


def _length(row: dict, tokenizer) -> int:
    """Tokens of a conversation; of the longer side of a pair; of a prompt with the opening of its reply."""
    if "messages" in row:
        return len(tokenizer.apply_chat_template(row["messages"])["input_ids"])
    if "chosen" in row:
        return max(len(tokenizer.apply_chat_template(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected"))
    return len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"])


def padded(lengths: list[int], rows: int, limit: int, grouped: bool) -> int:
    """The mean length of a batch of `rows` padded to its longest; `limit` where no lengths are known."""
    if not lengths:
        return limit
    lengths = [min(length, limit) for length in lengths]
    if grouped:  # the neighbours of a batch are as long as it
        return round(sum(lengths) / len(lengths))
    draw = random.Random(0)
    return round(sum(max(draw.choices(lengths, k=rows)) for _ in range(200)) / 200)


def files(names: list[str]) -> list[str]:
    """The YAML files named, of a directory those of its rungs in ladder order."""
    found = []
    for name in names:
        if not Path(name).is_dir():
            found.append(name)
            continue
        rungs = {rung: Path(name) / f"{rung}.yaml" for rung in TYPES}
        found += [str(path) for path in rungs.values() if path.is_file()]
        if not any(path.is_file() for path in rungs.values()):
            raise InputError("no rung's YAML in this directory", name, f"it should hold {', '.join(f'{r}.yaml' for r in TYPES)}")
    return found
