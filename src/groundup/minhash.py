"""Near duplicates, by datatrove: MinHash signatures of 5-grams, 14 buckets of 8 (Jaccard similarity of ~0.75 and more), clusters.

Importing this needs the extra `data`. The stages run in datatrove's executors: on this machine by default, on a Slurm cluster or in
Ray where one machine is too small. Each stage leaves its results in files, and a stage that is done is not done again.
"""

import contextlib
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.text import TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer
from groundup.errors import InputError
from loguru import logger
from xxhash import xxh64_intdigest

EXECUTORS = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
# By default all numbers are one, and two word problems with other numbers the same.
CONFIG = MinhashConfig(norm_config=TextNormConfig(norm_numbers=False))
SHINGLES = 4096  # whose 112 hashes each are in memory at once

logger.disable("datatrove")  # it tells of every task on the terminal


class WordSplitter(WordTokenizer):
    """Words by spaces. datatrove's own splitter of English is spaCy, 30 MB of it; signatures are made of text without punctuation,
    where both find the same, and the filters' thresholds are ratios of many words."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no filter that groundup offers asks for sentences")

    span_tokenize = sent_tokenize

    def __eq__(self, other: object) -> bool:  # datatrove caches the words of a text by this
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


class Signatures(MinhashDedupSignature):
    """Stage 1, in flat memory: a document of a megabyte has 200,000 shingles, and their hashes at once take 500 MB. datatrove
    hashes text, which xxhash 4 refuses; of the bytes both versions make the same."""

    def get_shingles(self, text: str) -> np.ndarray:
        words = self.word_tokenizer.word_tokenize(simplify_text(text, self.config.norm_config))
        n = self.config.n_grams
        grams = (" ".join(words[i : i + n]).encode() for i in range(len(words) - n + 1))
        return np.fromiter(map(xxh64_intdigest, grams), dtype=np.uint64).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        parts = [super(Signatures, self).get_signature(shingles[i : i + SHINGLES]) for i in range(0, len(shingles), SHINGLES)]
        return np.min(np.array(parts, dtype=np.uint64), axis=0).tolist()


def build_stages(
    documents: Callable, directory: Path, parts: int, executor: str, settings: dict[str, Any]
) -> list[PipelineExecutor]:
    """The three stages, each depending on the one before it.

    Args:
        documents: called with (None, part, parts), gives the part's documents as datatrove's `Document`; picklable.
        settings: the executor's own arguments, `{time: "2:00:00", partition: cpu}` for Slurm.

    Raises:
        InputError: an unknown executor, or settings that it does not take or misses.
    """
    if executor not in EXECUTORS:
        raise InputError(f"`executor: {executor}` is unknown", fix=f"write one of: {', '.join(EXECUTORS)}")
    folder = {name: str(directory / name) for name in ("signatures", "buckets", "clusters", "logs")}
    stages = [
        ("signatures", parts, [documents, Signatures(folder["signatures"], CONFIG, WordSplitter())]),
        ("buckets", CONFIG.num_buckets, [MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=CONFIG)]),
        ("clusters", 1, [MinhashDedupCluster(folder["buckets"], folder["clusters"], CONFIG, save_cluster_id=True)]),
    ]
    built: list[PipelineExecutor] = []
    for name, tasks, pipeline in stages:
        own = {"workers": min(tasks, os.cpu_count() or 1)} if executor == "local" else {}
        own |= {"job_name": f"minhash-{name}"} if executor == "slurm" else {}
        own |= {"depends": built[-1]} if built else {}
        try:
            built.append(EXECUTORS[executor](pipeline, tasks=tasks, logging_dir=f"{folder['logs']}/{name}", **{**own, **settings}))
        except TypeError as error:
            what = str(error).replace(f"{EXECUTORS[executor].__name__}.__init__() ", "")
            raise InputError(f"executor {executor}: {what}", "`executor_settings`", "see datatrove's documentation of it") from None
    return built


def is_done(stage: PipelineExecutor) -> bool:
    return not stage.get_incomplete_ranks(skip_completed=True)


def find_clusters(
    documents: Callable, directory: Path, parts: int, executor: str, settings: dict[str, Any], launch: bool = True
) -> list[np.ndarray] | None:
    """For each part the documents that have near duplicates, (any, 2) uint32: number in the order of `documents`, and cluster.

    None when a cluster is not done with it yet; without `launch`, also when it has not been asked.

    Raises:
        InputError: as `build_stages`; Slurm or Ray cannot be reached.
    """
    stages = build_stages(documents, directory, parts, executor, settings)
    if launch and not is_done(stages[-1]):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the bar of a stage that takes no time; errors are raised
                stages[-1].run()
        except (FileNotFoundError, ImportError, subprocess.CalledProcessError) as error:
            if executor == "local":
                raise
            raise InputError(f"executor {executor}: {error}", fix="run it where the cluster is, or with `local`") from error
    if not is_done(stages[-1]):
        return None
    files = (directory / "clusters" / f"{part:06d}.clusters" for part in range(parts))
    return [np.fromfile(file, "<u4").reshape(-1, 2) if file.is_file() else np.empty((0, 2), "<u4") for file in files]
