"""Documents -> a directory of tokens (`groundup.shards`), in passes that end in files, by one job or by many.

Every pass is made of tasks, and a task that is done is not done again: after a kill the same command goes on. Jobs of different
`--shard` work in one directory. What they all need, the notes of every part, they make together: a job makes those of its own
part, then any that no other job is at, and waits for the rest. So jobs may run at once or one after another, and none waits for
one that has not begun. Then each tokenises its own part, and the one that finds all shards there writes the manifest.

Tokenising keeps all cores busy: while the tokenizer's threads encode a batch, the next is read and cleaned, and the last written.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from groundup import record
from groundup.cleaning import build_filters, require_datatrove
from groundup.configs import DataArguments, PrepareArguments
from groundup.contamination import GRAM, SHORTEST, EvaluationSets
from groundup.corpus import Document, Source, changed, list_corpus, read_documents, read_notes, scan
from groundup.errors import InputError
from groundup.jobs import ahead, claim, full_disk, in_chunks, share
from groundup.selection import DROPPED, HELD_OUT, choose
from groundup.shards import MANIFEST, PASSES, ShardWriter, shard_name, token_dtype, tokenizer_hash, write_manifest
from groundup.sources import describe_files
from groundup.words import funnel
from transformers import PreTrainedTokenizerBase

MAY_CHANGE = ("output_dir", "tokenizer_path", "shard", "executor", "executor_settings")
AFTER_READING = ("near_duplicates", "held_out_documents", "seed", "packing", "max_length")  # may change until `choose` is done
BLOCK = 1 << 16  # notes of documents that are Python objects at a time
BATCH = (1 << 18) * min(os.cpu_count() or 1, 8)  # bytes of text encoded at once; 2 MB become ~100 MB of encodings
NO_SETS = "not decontaminated: no evaluation set is named in `decontaminate_against`"


class Preparation:
    """The passes over one corpus. Methods are called in the order they stand in; each returns when its pass is done.

    Raises:
        InputError: another tokenizer or other settings than those the directory was begun with, a vocabulary that no shard can
            hold, a source that cannot be found.
    """

    def __init__(self, data_args: DataArguments, args: PrepareArguments, tokenizer: PreTrainedTokenizerBase):
        self.args, self.tokenizer, self.directory = args, tokenizer, Path(args.output_dir)
        self.passes = self.directory / PASSES
        self.own = None if args.shard is None else int(args.shard.partition("/")[0])
        token_dtype(len(tokenizer))
        config = {**dataclasses.asdict(data_args), **dataclasses.asdict(args), "tokenizer_sha256": tokenizer_hash(tokenizer)}
        self.config = record.plain({key: value for key, value in config.items() if key not in MAY_CHANGE})
        self.packing = {"packing": args.packing, "length": args.max_length if args.packing == "best_fit" else None}
        self.manifest = record.read_json(self.directory / MANIFEST)
        before = self.manifest.get("config", {}) if self.manifest else self._begin(data_args)
        self._compare(before, ignore=("evaluation_sets_sha256",) if self.manifest else ())

    def _compare(self, before: dict[str, Any], ignore: tuple[str, ...] = ()) -> None:
        if changes := record.changed(before, self.config, ignore):
            state = "tokens prepared" if self.manifest else "a preparation begun"
            fix = "use the old settings, or give another `output_dir`"
            raise InputError(f"{self.directory} holds {state} with other settings: {'; '.join(changes)}", fix=fix)

    def _begin(self, data_args: DataArguments) -> dict[str, Any]:
        """Find everything that is needed, and the settings with which the preparation was begun, now or by an earlier job."""
        self.evaluation = EvaluationSets(self.args.decontaminate_against) if self.args.decontaminate_against else None
        self.config["evaluation_sets_sha256"] = self.evaluation and self.evaluation.sha256
        self.filters = build_filters(self.args.filters or [])
        if self.args.near_duplicates == "drop":
            require_datatrove("`near_duplicates: drop`")
        path = self.passes / "plan.json"
        with full_disk(self.directory):
            self.passes.mkdir(parents=True, exist_ok=True)
        if manifest := record.read_json(self.directory / MANIFEST):  # another job has finished since this one looked
            shutil.rmtree(self.passes, ignore_errors=True)
            self.manifest = manifest
            return manifest["config"]
        if (plan := record.read_json(path)) and plan["config"] != self.config and self._nothing_read():
            path.unlink()
        try:
            self.share(["plan"], lambda _: path.is_file(), lambda _: self._write_plan(path, data_args))
        except InputError:  # nothing is begun
            shutil.rmtree(self.passes, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.directory.rmdir()
            raise
        plan = record.read_json(path)
        self.sources = [Source(**{**entry, "args": DataArguments(**entry["args"])}) for entry in plan["sources"]]
        return plan["config"] | self._settled()

    def _settled(self) -> dict[str, Any]:
        """What `choose` was done with, by whichever job; before that, this job's own settings."""
        choice = record.read_json(self.passes / "choice.json")
        return choice["settings"] if choice else {key: self.config[key] for key in AFTER_READING}

    def _nothing_read(self) -> bool:
        """Whether no part was read to its end, and no job is at one: then the settings may still change."""
        with contextlib.ExitStack() as stack:
            free = [stack.enter_context(claim(path)) for path in self.passes.glob("scan-*.claim")]
            return all(free) and not any(self.passes.glob("scan-*.json"))

    def _write_plan(self, path: Path, data_args: DataArguments) -> None:
        sources = [dataclasses.asdict(source) for source in list_corpus(data_args)]
        record.write_json(path, {"config": self.config, "sources": sources})

    def share(self, tasks: list[str], done: Callable[[str], bool], do: Callable[[str], Any]) -> None:
        with full_disk(self.directory):
            share(self.passes, tasks, done, do)

    def share_parts(self, name: str, done: Callable[[int], bool], do: Callable[[int], Any], own_only: bool = False) -> None:
        """A task for each part, that of the job's own part first."""
        first = self.own or 0
        parts = [(first + n) % self.args.shards for n in range(1 if own_only else self.args.shards)]
        tasks = {f"{name}-{part:05d}": part for part in parts}
        self.share(list(tasks), lambda task: done(tasks[task]), lambda task: do(tasks[task]))

    def scan(self) -> None:
        """Read everything once: clean, filter, look for evaluation sets, and note each document."""

        def one(part: int) -> None:
            began = time.perf_counter()
            seen = scan(self.sources, self.args, part, self.passes, self.filters, self.evaluation)
            seconds = time.perf_counter() - began
            print(
                f"prepare: read part {part + 1} of {self.args.shards}: {seen['documents']:,} documents, "
                f"{seen['bytes'] / 1e6:,.1f} MB, {seen['bytes'] / 1e6 / seconds:,.0f} MB/s",
                flush=True,
            )

        self.share_parts("scan", lambda part: (self.passes / f"scan-{part:05d}.json").is_file(), one)

    def choose(self) -> bool:
        """Decide what becomes of each document. False when a cluster is still at the near duplicates."""

        def one(_: str) -> None:
            self._check_bad_rows()
            clusters = None
            if self.args.near_duplicates == "drop":
                from groundup.minhash import find_clusters  # late: it imports datatrove

                executor = self.args.executor
                stream = functools.partial(candidates, self.sources, self.args, self.passes)
                launch = executor != "slurm" or self.own is None  # a job of an array would take itself for one of datatrove's
                settings = self.args.executor_settings or {}
                clusters = find_clusters(stream, self.passes / "minhash", self.args.shards, executor, settings, launch)
                if clusters is None:
                    nonlocal waiting
                    waiting = True
                    return
            held_out = self.args.held_out_documents
            chosen = choose(self.passes, self.args.shards, self.sources, self.args.seed, held_out, clusters)
            settings = {key: self.config[key] for key in AFTER_READING}
            record.write_json(self.passes / "choice.json", {"settings": settings, **chosen})

        waiting = False
        self.share(["choice"], lambda _: waiting or (self.passes / "choice.json").is_file(), one)
        self._compare(self.config | self._settled())
        return not waiting

    def _check_bad_rows(self) -> None:
        scans = self._scans()
        for number, source in enumerate(self.sources):
            bad = sum(seen["counts"][number].get("did not parse", 0) for seen in scans)
            if bad > source.args.max_bad_rows:
                what = f"{bad} bad rows, more than `max_bad_rows: {source.args.max_bad_rows}`"
                raise InputError(what, source.args.dataset, "mend them, or allow more")

    def _scans(self) -> list[dict]:
        return [record.read_json(self.passes / f"scan-{part:05d}.json") for part in range(self.args.shards)]

    def tokenise(self) -> None:
        """Write the shard of the job's own part, or all."""
        self.share_parts("train", self._tokenised, self._tokenise, own_only=self.own is not None)

    def _tokenised(self, part: int) -> bool:
        index = self.directory / f"{shard_name('train', part, self.args.shards)}.json"
        return index.is_file() and (self.passes / f"held_out-{part:05d}.npy").is_file()

    def _tokenise(self, part: int) -> None:
        began = time.perf_counter()
        writer = ShardWriter(self.directory, "train", self.tokenizer, **self.packing, shard=part, shards=self.args.shards)
        path = self.passes / f"held_out-{part:05d}.bin"  # held-out documents are few, and wait here for those of the other parts
        lengths: list[tuple[int, int]] = []
        with writer, record.write_aside(path) as aside:
            for documents, encodings in self._encoded(self._chosen(part)):
                for (document, choice), encoding in zip(documents, encodings, strict=True):
                    ids = np.frombuffer(array("I", encoding.ids), np.uint32)
                    if choice == HELD_OUT:
                        aside.write(ids.astype("<u4").tobytes())
                        lengths.append((len(ids), document.size))
                    else:
                        writer.add(ids, document.size)
        with record.write_aside(path.with_suffix(".npy")) as file:
            np.save(file, np.array(lengths, dtype="<u8").reshape(-1, 2))
        counts, seconds = writer.counts, time.perf_counter() - began
        print(
            f"prepare: shard {part + 1} of {self.args.shards}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['tokens'] / seconds:,.0f} tokens/s",
            flush=True,
        )

    def _chosen(self, part: int) -> Iterator[tuple[Document, int]]:
        """The documents of a part that are used, and whether they are held out."""
        with open(self.passes / f"choice-{part:05d}.bytes", "rb") as file:
            choices = itertools.chain.from_iterable(iter(lambda: file.read(BLOCK), b""))
            for (document, _), choice in zip(noted(self.sources, self.args, part, self.passes), choices, strict=True):
                if choice != DROPPED:
                    yield document, choice

    def _encoded(self, documents: Iterator[tuple[Document, int]]) -> Iterator[tuple[list, list]]:
        """Batches of documents with their encodings; reading and encoding each in a thread, ahead of whoever asks."""
        encode = self.tokenizer.backend_tokenizer.encode_batch_fast
        batches = ahead(in_chunks(documents, BATCH, size_of=lambda item: item[0].size))
        return ahead(((batch, encode([d.text for d, _ in batch], add_special_tokens=False)) for batch in batches), depth=2)

    def finish(self) -> dict[str, Any] | None:
        """When all shards are there: the held-out shard, the manifest, and an end to the passes' files. Else None."""
        left = [part for part in range(self.args.shards) if not self._tokenised(part)]
        if left and not (self.directory / MANIFEST).is_file():
            print(f"prepare: {len(left)} of {self.args.shards} shards are left to other jobs", flush=True)
            return None
        self.share(["finish"], lambda _: (self.directory / MANIFEST).is_file(), lambda _: self._finish())
        self.manifest = record.read_json(self.directory / MANIFEST)
        return self.manifest

    def _finish(self) -> None:
        lengths = [np.load(self.passes / f"held_out-{part:05d}.npy") for part in range(self.args.shards)]
        if sum(map(len, lengths)):
            with ShardWriter(self.directory, "held_out", self.tokenizer, **self.packing) as writer:
                for part, of_part in enumerate(lengths):
                    with open(self.passes / f"held_out-{part:05d}.bin", "rb") as file:
                        for length, size in of_part.tolist():
                            writer.add(np.fromfile(file, "<u4", length), size)
        write_manifest(self.directory, self.tokenizer, **self._describe())
        shutil.rmtree(self.passes)

    def _describe(self) -> dict[str, Any]:
        """What the manifest says beside the counts of tokens."""
        scans, choice = self._scans(), record.read_json(self.passes / "choice.json")
        sources, removed = [], Counter()
        for number, source in enumerate(self.sources):
            counts = sum((Counter(seen["counts"][number]) for seen in scans), Counter())
            rows = counts.pop("rows", 0)
            dropped = counts + Counter({reason: numbers[number] for reason, numbers in choice["dropped"].items()})
            removed += dropped
            origin = {"revision": source.revision, "files": 0}
            origin = describe_files(file["sha256"] for file in source.files) if source.files else origin
            used = [sum(pair) for pair in zip(choice["used"][number], choice["held_out"][number], strict=True)]
            kept = used[0] + dropped["beyond its share"]
            entry = {"name": source.args.dataset, **origin, "rows": rows, "kept": kept, "dropped": dict(dropped), "used": used[0]}
            sources.append({**entry, "bytes": used[1], "weight": source.weight, "held_out": choice["held_out"][number][0]})
        decontamination: dict[str, Any] = {"notice": NO_SETS}
        if self.evaluation:
            hit = np.array(sorted(set().union(*(seen["items"] for seen in scans))), dtype=np.int64)
            hit = np.bincount(self.evaluation.set_of(hit), minlength=len(self.evaluation.names))
            by_set = np.sum([seen["contaminated_by_set"] for seen in scans], axis=0)
            columns = (self.evaluation.names, self.evaluation.items, self.evaluation.short, hit.tolist(), by_set.tolist())
            keys = ("name", "items", "too_short", "items_found", "documents")
            decontamination = {
                "words": GRAM,
                "shortest": SHORTEST,
                "contaminated": self.args.contaminated,
                "documents": sum(seen["contaminated"] for seen in scans),
                "sets": [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)],
            }
        examples: dict[str, list] = {}
        for seen in scans:
            for reason, shown in seen["examples"].items():
                examples[reason] = (examples.get(reason, []) + shown)[:3]
        return {
            "sources": sources,
            "config": self.config,
            "documents": sum(source["used"] for source in sources) + removed.total(),
            "dropped": dict(removed),
            "decontamination": decontamination,
            "dropped_examples": examples,
            "versions": record.versions(),
        }


def summary(manifest: dict[str, Any]) -> str:
    """Lines for the terminal: what was dropped, what overlaps with evaluation sets, what there is now."""
    lines = [funnel(manifest["documents"], "documents", manifest["dropped"])]
    decontamination = manifest["decontamination"]
    if "notice" in decontamination:
        lines.append(decontamination["notice"])
    for entry in decontamination.get("sets", ()):
        lines.append(f"{entry['name']}: {entry['items_found']} of {entry['items']} items found, in {entry['documents']} documents")
    for split, counts in manifest["splits"].items():
        lines.append(f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens in {counts['shards']} shards")
    if "held_out" not in manifest["splits"]:
        lines.append("no document is held out")
    return "\n".join(f"prepare: {line}" for line in lines)


def candidates(sources: list[Source], args: PrepareArguments, passes: Path, _: Any, part: int, parts: int) -> Iterator[Any]:
    """Documents of a part that the scan kept, for datatrove, which pickles this to other processes and machines."""
    from datatrove.data import Document as Candidate

    for number, (document, dropped) in enumerate(noted(sources, args, part, passes)):
        if not dropped:
            yield Candidate(text=document.text, id=str(number))


def noted(sources: list[Source], args: PrepareArguments, part: int, passes: Path) -> Iterator[tuple[Document, int]]:
    """The documents of a part once more, each compared with its note; and whether the scan dropped it.

    Raises:
        InputError: a source gives other documents than before.
    """
    notes, documents = read_notes(passes, part), read_documents(sources, args, part, args.shards)
    for start in range(0, len(notes), BLOCK):
        block = notes[start : start + BLOCK]
        for known, dropped in zip(block["hash"].tolist(), block["dropped"].tolist(), strict=True):
            document = next(documents, None)
            if document is None or document.hash != known:
                raise changed(document.place if document else f"the sources of part {part}")
            yield document, dropped
    if document := next(documents, None):
        raise changed(document.place)
