"""Pre-training: the tokens it reads, the order it reads them in, and the plain Trainer with what it is judged by in its log."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from groundup.configs import DataArguments, ModelArguments
from groundup.data import Loaded, load_documents
from groundup.errors import InputError
from groundup.jobs import in_chunks
from groundup.model import count_parameters, dial, flops_per_token
from groundup.order import Order
from groundup.shards import ShardWriter, TokenShards, is_prepared, read_manifest, tokenizer_hash, write_manifest
from transformers import AttentionInterface, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from trl.trainer.utils import get_peak_flops_per_device

CHUNK = 500  # documents that are Python objects at a time
BATCH = 2**20  # characters encoded at once: enough to keep every core busy, little enough to keep memory flat
BLOCK = 1024  # positions whose rows are found at once
OWN_MASK = ("sdpa", "eager", "flex_attention")  # attention that keeps documents apart by their position ids, in any batch


def apply_dial(args: TrainingArguments, model_args: ModelArguments, vocab_size: int) -> None:
    """With `depth`, set steps, batch and learning rates that the YAML leaves at their defaults (groundup.model.Dial); with or
    without, multiply the rates by `learning_rate_factor`."""
    if model_args.depth is not None:
        chosen = dial(model_args.depth, vocab_size, model_args.tokens_per_parameter)
        default = TrainingArguments("unused", use_cpu=True)
        if args.learning_rate == default.learning_rate:
            args.learning_rate = chosen.adamw_beside_muon if model_args.muon_learning_rate else chosen.learning_rate
        device_tokens = args.per_device_train_batch_size * model_args.max_length * args.world_size
        if args.gradient_accumulation_steps == default.gradient_accumulation_steps:
            args.gradient_accumulation_steps = max(1, round(chosen.batch_tokens / device_tokens))
        if args.max_steps == default.max_steps and args.num_train_epochs == default.num_train_epochs:
            args.max_steps = max(1, round(chosen.tokens / (device_tokens * args.gradient_accumulation_steps)))
    args.learning_rate *= model_args.learning_rate_factor


class Tokens(NamedTuple):
    """Rows to train on and, or None, to measure on; and where their documents came from."""

    train: TokenShards
    held_out: TokenShards | None
    sources: list[dict]


def open_tokens(
    data_args: DataArguments, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, directory: Path, write: bool = True
) -> Tokens:
    """The tokens of `dataset`, and of `eval_dataset` or the held-out split that was prepared with `dataset`.

    Directories of prepared shards are read where they are. Other sources are read into memory and written as shards to `directory`,
    once: a second call with the same documents, tokenizer and packing reads them. A corpus of many gigabytes goes through
    recipes/prepare.py instead: here one process tokenises while the others wait, at most for `ddp_timeout`.

    Args:
        write: whether this process writes; one must, before the others call.

    Raises:
        InputError: bad input, of either kind.
    """
    if any(is_prepared(entry.get("path")) for entry in data_args.datasets or [] if isinstance(entry, dict)):
        fix = "mix the sources in recipes/prepare.py, and name its directory as `dataset`"
        raise InputError("prepared tokens cannot be part of a mixture", "`datasets`", fix)
    names = {"train": data_args.dataset, "held_out": data_args.eval_dataset or data_args.dataset}
    prepared = {split: is_prepared(name) for split, name in names.items()}
    places = {split: Path(names[split]) if prepared[split] else directory for split in names}
    for split, key in (("train", "max_rows"), ("held_out", "max_eval_rows")):
        if prepared[split] and getattr(data_args, key):
            raise InputError(f"`{key}` counts documents, and these are tokens already", names[split], f"remove `{key}`")
    packing = read_manifest(places["train"])["packing"] if prepared["train"] else model_args.packing
    if write:
        raw = {split: which for split, which in (("train", "train"), ("held_out", "eval")) if not prepared[split]}
        loaded = {split: documents for split, which in raw.items() if (documents := load_documents(data_args, which))}
        if loaded:
            write_tokens(loaded, tokenizer, packing, model_args.max_length, directory)
    train = TokenShards(places["train"], "train", tokenizer, model_args.max_length)
    manifest, held_out = read_manifest(places["held_out"]), None
    split = "train" if data_args.eval_dataset and "held_out" not in manifest["splits"] else "held_out"
    if split in manifest["splits"]:
        held_out = TokenShards(places["held_out"], split, tokenizer, model_args.max_length)
    others = manifest["sources"] if places["held_out"] != places["train"] else []
    return Tokens(train, held_out, train.manifest["sources"] + others)


def write_tokens(loaded: dict[str, Loaded], tokenizer: PreTrainedTokenizerBase, packing: str, length: int, directory: Path) -> None:
    """Documents of each split -> a directory of shards, one a split, unless they are what it holds."""
    identity = {split: documents.rows._fingerprint for split, documents in loaded.items()}
    identity |= {"packing": packing, "length": length if packing == "best_fit" else None}
    identity |= {"tokenizer_sha256": tokenizer_hash(tokenizer)}
    with contextlib.suppress(InputError):  # not finished, or damaged: written again
        if read_manifest(directory).get("identity") == identity:
            for split in loaded:
                TokenShards(directory, split, tokenizer, length)
            return
    for stale in directory.glob("*-?????-of-?????.json"):  # of a split that is no more, say
        stale.unlink()
    for split, documents in loaded.items():
        with ShardWriter(directory, split, tokenizer, packing, length) as writer:
            every = itertools.chain.from_iterable(rows["text"] for rows in documents.rows.iter(CHUNK))
            for texts in in_chunks(every, BATCH, size_of=len):
                encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                for text, encoding in zip(texts, encodings, strict=True):
                    writer.add(encoding.ids, len(text.encode()))
    sources = [entry for documents in loaded.values() for entry in documents.provenance]
    write_manifest(directory, tokenizer, sources, identity=identity)


class Steps(torch.utils.data.Sampler):
    """Row numbers of a whole run: step s reads positions [s x batch, (s + 1) x batch) of `order`, one epoch after another.

    It begins where the run stands, without going through what was read before, and is the same for every split of a step's rows
    among processes, micro-batches and accumulation.

    Args:
        batch: rows a step, of all processes.
        first: called when reading begins; the step to begin with.
    """

    def __init__(self, order: Order, batch: int, steps: int, first: Callable[[], int]):
        self.order, self.batch, self.steps, self.first = order, batch, steps, first

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        for start in range(self.first() * self.batch, len(self), BLOCK):
            yield from self.order[np.arange(start, min(start + BLOCK, len(self)))].tolist()


class DataEpoch(TrainerCallback):
    """Keeps `epoch` what it says it is, how often the data has been read: for the Trainer, our run is one long epoch."""

    def __init__(self, epochs_a_step: float):
        self.epochs_a_step = epochs_a_step

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step * self.epochs_a_step


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | bool]:
    """Rows as a batch, without an attention mask. Packed rows go without a cache too: with a mask or a cache transformers does not
    look at where positions begin again, and documents would see each other (`masking_utils._preprocess_mask_arguments`)."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "use_cache": False}


class PretrainTrainer(Trainer):
    """`transformers.Trainer` that reads rows in an order of its own (`Steps`), with three more numbers a log line.

    - `tokens_per_second`: over the interval since the last line, evaluation and saving left out (the Trainer's own figure is an
      average since the start that includes both);
    - `mfu`: share of the accelerator's peak, where the peak is known;
    - `eval_bits_per_byte`: held-out loss over the length of the text, which does not depend on the tokenizer.

    `num_train_epochs` becomes a number of steps, the last epoch filled up to a whole one; strategies "epoch" count steps too.

    Args:
        bytes_per_token: of the held-out text.
        block_length: tokens a row.

    Raises:
        InputError: fewer rows than a step takes, or packed documents and an attention that would mix them.
    """

    def __init__(self, *args, bytes_per_token: float | None = None, block_length: int, **kwargs):
        super().__init__(*args, data_collator=collate, **kwargs)
        self.bytes_per_token = bytes_per_token
        self.block_length = block_length
        self.batch, rows = self.get_total_train_batch_size(self.args), len(self.train_dataset)
        if rows < self.batch:
            where = f"batch {self.args.train_batch_size} x accumulation {self.args.gradient_accumulation_steps}"
            where += f" x {self.args.world_size} processes"
            what = f"{rows} rows of {block_length} tokens, fewer than the {self.batch} of one step"
            raise InputError(what, where, "give more text, or a smaller `per_device_train_batch_size`")
        attention, packed = self.model.config._attn_implementation, "position_ids" in self.train_dataset[0]
        if packed and attention not in OWN_MASK:
            fix = f"use one of {', '.join(OWN_MASK)}, or `packing: wrapped`"
            raise InputError(f"`{attention}` lets packed documents see each other", "attn_implementation", fix)
        windows = [self.model.config.to_dict().get(name) or math.inf for name in ("sliding_window", "attention_chunk_size")]
        if not packed and attention == "sdpa" and min(windows) >= block_length:
            # Compiled, transformers makes a mask of (B, 1, T, T) for fear of packed rows, and flash kernels take none. For a name
            # without a mask function it makes no mask, and sdpa is causal by its flag, which knows no windows.
            AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
            self.model.set_attn_implementation("sdpa_causal")
        if self.args.max_steps <= 0:
            self.args.max_steps = math.ceil(self.args.num_train_epochs * rows / self.batch)
        for what in ("eval", "save", "logging"):
            if getattr(self.args, f"{what}_strategy") == IntervalStrategy.EPOCH:
                setattr(self.args, f"{what}_strategy", IntervalStrategy.STEPS)
                setattr(self.args, f"{what}_steps", math.ceil(rows / self.batch))
        self.args.ignore_data_skip = True  # there is nothing to skip
        self.args.remove_unused_columns = False
        self.add_callback(DataEpoch(self.batch / rows))
        self.order = Order(rows, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        self._flops = flops_per_token(self.model.config, count_parameters(self.model), block_length)
        self._step_tokens = self.batch * block_length
        self._since, self._since_step, self._paused = time.perf_counter(), 0, 0.0
        dtype = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
        peak = get_peak_flops_per_device(self.accelerator, dtype) if self.args.device.type == "cuda" else None
        self._peak = peak and peak * self.args.world_size

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        args = self.args
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            sampler=Steps(self.order, self.batch, args.max_steps, lambda: self.state.global_step),
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # or a resumed run, which begins to read once more, draws a random number more
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def rows_of(self, step: int) -> list[int]:
        """Numbers of the rows that a step, counted from 1, reads in all processes together."""
        return self.order[np.arange((step - 1) * self.batch, step * self.batch)].tolist()

    def train(self, *args, **kwargs):
        self._since, self._since_step = time.perf_counter(), None
        return super().train(*args, **kwargs)

    def pausing(self, function, *args, **kwargs):
        """Call `function` while the clock of tokens a second stands."""
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self._paused += time.perf_counter() - start
        return result

    def evaluate(self, *args, **kwargs):
        return self.pausing(super().evaluate, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        return self.pausing(super()._save_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.perf_counter()
            steps = self.state.global_step - (self._since_step or 0)
            seconds = now - self._since - self._paused
            if self._since_step is not None and steps > 0 and seconds > 0:  # the first interval holds warm-up and compilation
                logs["tokens_per_second"] = steps * self._step_tokens / seconds
                if self._peak:
                    logs["mfu"] = logs["tokens_per_second"] * self._flops / self._peak
            self._since, self._since_step, self._paused = now, self.state.global_step, 0.0
            logs["tokens"] = self.tokens
        if "eval_loss" in logs and self.bytes_per_token:
            logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        super().log(logs, start_time)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.state.global_step * self._step_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs so far, by the formula of `groundup.model.flops_per_token`."""
        return self.tokens * self._flops
