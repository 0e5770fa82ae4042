"""What a YAML file may say: the fields that groundup adds to upstream's classes, and which numbers make sense in both."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from groundup.errors import InputError

# Upstream takes most of these at any value, and fails late in its own words, or trains on them.
KINDS: list[tuple[str, Callable[[float], bool], str]] = [
    (
        "a number from 0",
        lambda x: 0 <= x < math.inf,
        "learning_rate critic_learning_rate muon_learning_rate weight_decay beta kl_coef",
    ),
    ("a number from 0", lambda x: 0 <= x < math.inf, "max_grad_norm warmup_steps vf_coef missing_eos_penalty"),
    ("a number above 0", lambda x: 0 < x < math.inf, "num_train_epochs logging_steps eval_steps save_steps temperature"),
    ("a number from 0 to 1", lambda x: 0 <= x <= 1, "gamma lam top_p"),
    ("a number from 0, and below 1", lambda x: 0 <= x < 1, "adam_beta1 adam_beta2"),
    (
        "a whole number from 1",
        lambda x: x >= 1,
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps",
    ),
    (
        "a whole number from 1",
        lambda x: x >= 1,
        "max_length max_completion_length num_generations num_iterations steps_per_generation",
    ),
    ("a whole number from 1, or leave it out", lambda x: x == -1 or x >= 1, "max_steps"),
    ("a whole number from 0 to 4294967295", lambda x: 0 <= x < 2**32, "seed data_seed"),
]


def check_numbers(settings: dict[str, Any], where: str) -> None:
    """Refuse a number that its setting cannot be.

    Raises:
        InputError: names the numbers that it can be.
    """
    for kind, fits, names in KINDS:
        for name in names.split():
            value = settings.get(name)
            if isinstance(value, (int, float)) and not fits(value):
                raise InputError(f"`{name}: {value}` cannot be", where, f"write {kind}")


@dataclass
class RunArguments:
    """How a run is kept from harm, whatever it trains."""

    check_memory: bool = field(default=True, metadata={"help": "Refuse to start when memory or disk will not do (groundup.plan)."})
    allow_change: list[str] = field(
        default_factory=list,
        metadata={"help": "Settings that a resumed run may have otherwise than before; also `data` and `parent`, its model."},
    )
    max_skipped_steps: int = field(
        default=5, metadata={"help": "Steps in a row that may be left out because loss or gradient is no number."}
    )
    silence_timeout: float = field(
        default=15.0, metadata={"help": "Seconds that another process on this machine may stand still; 0: any time."}
    )
    show_samples: int = field(default=10, metadata={"help": "Times in a run that it is shown what the model says; 0: never."})
    license: str = field(default="apache-2.0", metadata={"help": "What the model card says of the model's licence."})

    def __post_init__(self):
        if self.max_skipped_steps < 0:
            raise InputError(f"`max_skipped_steps: {self.max_skipped_steps}`", fix="write a number from 0")
        if self.silence_timeout < 0:
            raise InputError(f"`silence_timeout: {self.silence_timeout}`", fix="write seconds, or 0 for any time")
        if self.show_samples < 0:
            raise InputError(f"`show_samples: {self.show_samples}`", fix="write how often, or 0 for never")


@dataclass
class DataArguments:
    """Where the rows come from, and what their columns are called.

    A source is a local file (`.txt`, `.jsonl`, `.json`, `.parquet`, each also as `.gz` where it is text), a directory or
    glob of such files, or the id of a dataset on the Hub. One source: `dataset`. Several: `datasets`, a list of mappings
    with the keys `path`, `weight` and any of the other fields here, which then hold for that source only.
    """

    dataset: str | None = field(default=None, metadata={"help": "Local file, directory, glob, or dataset id on the Hub."})
    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={"help": "A weighted mixture: [{path: a.jsonl, weight: 0.7}, {path: user/name, weight: 0.3}]."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of a Hub dataset."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Held-out rows, in the same form as `dataset`."})
    eval_split: str = field(default="test", metadata={"help": "Split of a Hub dataset given as `eval_dataset`."})
    max_rows: int | None = field(default=None, metadata={"help": "Take the first rows only."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "Take the first held-out rows only."})
    text_column: str = field(default="text", metadata={"help": "Column with a document."})
    messages_column: str = field(default="messages", metadata={"help": "Column with a list of {role, content}."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column with a prompt: text, or a list of {role, content}."})
    completion_column: str = field(default="completion", metadata={"help": "Column with the completion of a prompt."})
    chosen_column: str = field(default="chosen", metadata={"help": "Column with the preferred completion."})
    rejected_column: str = field(default="rejected", metadata={"help": "Column with the other completion."})
    question_column: str = field(default="question", metadata={"help": "Column with a question or problem."})
    answer_column: str = field(default="answer", metadata={"help": "Column with its answer."})
    context_column: str | None = field(
        default=None, metadata={"help": "Column put before the prompt or question, with a blank line between."}
    )
    max_bad_rows: int = field(default=0, metadata={"help": "Rows that do not parse are skipped and counted up to this number."})
    max_dropped_share: float = field(default=0.5, metadata={"help": "Share of a source's rows that may be dropped as unfit."})

    def __post_init__(self):
        if self.dataset is not None and not self.dataset.strip():
            raise InputError("`dataset` is empty", fix="write `dataset: path/or/hub-id`")
        if (self.dataset is None) == (self.datasets is None):
            found = "neither" if self.dataset is None else "both"
            raise InputError(
                f"a run needs `dataset` or `datasets`, found {found}",
                fix="write `dataset: path/or/hub-id`, or `datasets: [{path: ..., weight: ...}, ...]` for a mixture",
            )
        if not 0 <= self.max_dropped_share <= 1:
            raise InputError(f"`max_dropped_share: {self.max_dropped_share}` is no share", fix="write a number from 0 to 1")
        for name in ("max_rows", "max_eval_rows"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"`{name}: {value}` is not a positive whole number", fix=f"leave `{name}` out to take all rows")


@dataclass
class TokenizerArguments:
    """Rung 0."""

    output_dir: str = field(metadata={"help": "Directory of the tokenizer."})
    vocab_size: int = field(default=32768, metadata={"help": "Tokens, the 256 bytes and the special ones included."})
    max_length: int = field(default=2048, metadata={"help": "`model_max_length` of the tokenizer, in tokens."})
    max_characters: int = field(default=500_000_000, metadata={"help": "Stop reading after this much text; more changes nothing."})

    def __post_init__(self):
        if self.max_characters < 1:
            raise InputError(f"`max_characters: {self.max_characters}`", fix="write a number from 1")


@dataclass
class PrepareArguments:
    """Documents -> shards of tokens (groundup.preparation). Here the `weight` of an entry of `datasets` is a share of bytes of
    text, and `max_rows` counts rows read."""

    tokenizer_path: str = field(metadata={"help": "Tokenizer directory, or a Hub id."})
    output_dir: str = field(metadata={"help": "Directory of the shards; pre-training names it as `dataset`."})
    shards: int = field(default=1, metadata={"help": "Parts that are prepared independently, and shards of the result."})
    shard: str | None = field(default=None, metadata={"help": "`i/n`: shard i (from 0) of n only, as a job of many."})
    packing: str = field(default="wrapped", metadata={"help": "`wrapped`, cut at any length when read, or `best_fit`."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens a row, for packing `best_fit`."})
    held_out_documents: int | None = field(
        default=None, metadata={"help": "Documents of the held-out split; 1 in 200, at most 1000, if not given."}
    )
    shortest: int = field(default=1, metadata={"help": "Documents of fewer characters are dropped."})
    longest: int = field(default=200_000, metadata={"help": "Longest document, in characters; ~50,000 tokens of English."})
    too_long: str = field(default="cut", metadata={"help": "`cut` longer ones into several, at blank lines; or `drop` them."})
    filters: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "datatrove's filters, [{name: gopher_quality, min_doc_words: 20}] (groundup.cleaning)."}
    )
    near_duplicates: str = field(default="keep", metadata={"help": "`keep`, or `drop` all but one of each kind, by MinHash."})
    executor: str = field(default="local", metadata={"help": "Where MinHash runs: `local`, `slurm` or `ray`."})
    executor_settings: dict[str, Any] | None = field(
        default=None, metadata={"help": 'Of datatrove\'s executor: {partition: cpu, time: "2:00:00"} for Slurm.'}
    )
    decontaminate_against: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "Evaluation sets: [{path: test.jsonl, columns: [question]}] (groundup.contamination)."}
    )
    contaminated: str = field(default="drop", metadata={"help": "`drop` documents that hold their items, or `count` them only."})
    contaminated_from: int = field(default=1, metadata={"help": "Shared 13-grams from which a document is contaminated."})
    seed: int = field(default=0, metadata={"help": "Of what is held out and what a mixture leaves out."})

    def __post_init__(self):
        for name, choices in (
            ("packing", ("wrapped", "best_fit")),
            ("too_long", ("cut", "drop")),
            ("near_duplicates", ("keep", "drop")),
            ("executor", ("local", "slurm", "ray")),
            ("contaminated", ("drop", "count")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"`{name}: {getattr(self, name)}`", fix=f"write one of: {', '.join(choices)}")
        for name, least, most in (
            ("shards", 1, 65536),
            ("held_out_documents", 0, None),
            ("shortest", 0, None),
            ("longest", 2, 4_000_000),  # encoded, each may take a kilobyte
            ("contaminated_from", 1, None),
        ):
            value = getattr(self, name)
            if value is not None and not (value >= least and (most is None or value <= most)):
                raise InputError(f"`{name}: {value}`", fix=f"write a number from {least}" + (f" to {most}" if most else ""))
        if self.packing == "best_fit" and not self.max_length:
            raise InputError("packing `best_fit` needs to know the rows", "max_length", "write `max_length: 1024`")
        if self.shard is not None:
            number, slash, shards = self.shard.partition("/")
            if not (slash and number.isdecimal() and shards.isdecimal() and int(number) < int(shards)):
                raise InputError(f"`shard: {self.shard}` is no `i/n`", fix="write `0/8` to `7/8` for 8 shards")
            if self.shards not in (1, int(shards)):
                raise InputError(f"`shard: {self.shard}` of `shards: {self.shards}`", fix=f"write `i/{self.shards}`")
            self.shards = int(shards)


@dataclass
class ModelArguments:
    """The random model of rung 1: `depth`, or sizes of your own in `model_config`, or both (yours win)."""

    tokenizer_path: str = field(metadata={"help": "Tokenizer directory, or a Hub id."})
    model_type: str = field(default="qwen3", metadata={"help": "Any causal architecture of transformers."})
    depth: int | None = field(
        default=None,
        metadata={"help": "One dial: sizes, tokens, batch and learning rate follow (groundup.model.Dial)."},
    )
    tokens_per_parameter: float = field(default=20.0, metadata={"help": "Length of a run given by `depth`."})
    model_config: dict[str, Any] | None = field(default=None, metadata={"help": "Sizes by the architecture's own names."})
    residual_init: str = field(
        default="depth", metadata={"help": "What writes into the residual stream: `depth`-scaled, `zero` or `plain` (build_model)."}
    )
    embedding_std: float | None = field(default=None, metadata={"help": "Spread of the embeddings at birth; the architecture's."})
    head_std: float | None = field(default=None, metadata={"help": "Spread of an untied head at birth; the architecture's."})
    max_length: int = field(default=1024, metadata={"help": "Tokens a row."})
    packing: str = field(
        default="wrapped",
        metadata={"help": "Documents into rows: `wrapped`, one after another, or `best_fit`, whole and unseen by each other."},
    )
    max_position_embeddings: int | None = field(default=None, metadata={"help": "Longest sequence; `max_length` if not given."})
    random_init_dir: str | None = field(
        default=None, metadata={"help": "Keep the random weights as a stage directory, to compare with."}
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Muon for the hidden matrices at this rate (0.02), AdamW at `learning_rate` for the rest."},
    )
    muon_block: int | None = field(
        default=64, metadata={"help": "Rows (heads, neurons) that Muon makes orthogonal at a time; `null`: whole matrices."}
    )
    muon_weight_decay: float = field(default=0.0, metadata={"help": "Decay of Muon's matrices."})
    embedding_learning_rate: float | None = field(default=None, metadata={"help": "Of the embeddings; else `learning_rate`."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Of an untied head; else `learning_rate`."})
    learning_rate_factor: float = field(default=1.0, metadata={"help": "Times all learning rates, to try others."})
    chunked_loss: bool = field(default=True, metadata={"help": "Never hold all logits at once (groundup.head)."})
    z_loss: float = field(default=0.0, metadata={"help": "Weight of the squared log-normaliser in the loss, 1e-4 say; 0: none."})

    def __post_init__(self):
        if self.packing not in ("wrapped", "best_fit"):
            raise InputError(f"`packing: {self.packing}`", fix="write one of: wrapped, best_fit")
        if self.residual_init not in ("depth", "zero", "plain"):
            raise InputError(f"`residual_init: {self.residual_init}`", fix="write one of: depth, zero, plain")
        if self.z_loss and not self.chunked_loss:
            raise InputError("the z-loss is part of the chunked loss", "z_loss", "leave `chunked_loss` at true")


@dataclass
class RewardArguments:
    """What a reply is rewarded for, each with its weight (groundup.rewards)."""

    rewards: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={"help": "[{name: correct_answer, weight: 1.0}, {model: out/nano/reward}, {name: my.module.function}]"},
    )
    max_faulty_share: float = field(
        default=0.2, metadata={"help": "Share of a batch's completions for which a reward may raise, hang or return no number."}
    )
    reward_timeout: float = field(
        default=60.0, metadata={"help": "Seconds that one call of a reward function of your own may take; 0: any time."}
    )

    def __post_init__(self):
        if not self.rewards:
            raise InputError("nothing is rewarded", "rewards", "write `rewards: [{name: correct_answer, weight: 1.0}]`")
        for name, most in (("max_faulty_share", 1), ("reward_timeout", 86400)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"`{name}: {getattr(self, name)}`", fix=f"write a number from 0 to {most}")


@dataclass
class RehearsalArguments:
    """Prompts of another kind among the problems of GRPO. They have no answer and earn nothing; with `beta` above 0 the KL term
    holds the model's replies to them where they were, so that what it learned before is not the price of what it learns now."""

    rehearsal_dataset: str | None = field(default=None, metadata={"help": "Prompts to rehearse, in the form ppo.py takes."})
    rehearsal_share: float = field(default=0.25, metadata={"help": "Their share of all prompts."})

    def __post_init__(self):
        if not 0 < self.rehearsal_share < 1:
            raise InputError(f"`rehearsal_share: {self.rehearsal_share}` is no share", fix="write a number between 0 and 1")


@dataclass
class GateArguments:
    """What GRPO asks the model before its first step (groundup.gate); a run that resumes is not asked again."""

    gate_prompts: int = field(default=64, metadata={"help": "Prompts tried, `num_generations` times each; 0: no gate."})
    gate_min_mixed: float = field(
        default=0.05, metadata={"help": "Share of prompts of which some completions must pass and some fail."}
    )
    force: bool = field(default=False, metadata={"help": "Train although the gate says that there is nothing to learn from."})


@dataclass
class CurriculumArguments:
    """Which problems GRPO tries next (groundup.curriculum); without them all in turn."""

    curriculum: bool = field(default=False, metadata={"help": "Draw problems by how often they were solved, the even ones first."})
    curriculum_rest: int = field(
        default=20, metadata={"help": "Rollouts for which a problem always or never solved is left alone."}
    )
    extra_rollouts: int = field(
        default=0,
        metadata={"help": "Most rollouts made besides one, to replace groups in which all fare alike; with a curriculum."},
    )
