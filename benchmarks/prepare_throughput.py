"""How fast recipes/prepare.py tokenises beside the tokenizer alone, and how much memory it takes on a file of any size.

    python benchmarks/prepare_throughput.py --quick
    python benchmarks/prepare_throughput.py --gigabytes 2 --text 'my/corpus/*.jsonl.gz'

Speed: the tokenising pass (reading, cleaning, encoding, writing of a shard) and `encode_batch_fast` and `encode_batch` alone on the
same texts in memory, in the same batches, a few rounds of each in turn, medians. Memory: the peak resident set of the whole recipe,
run as a user runs it on a generated file in which no document comes twice, decontamination included. The text is toyland's, or what
--text names, in documents of some 4 kB, about what a page of the web has.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import measure
from groundup.cleaning import cut
from groundup.configs import DataArguments, PrepareArguments
from groundup.data import load_documents
from groundup.preparation import BATCH, Preparation
from groundup.shards import shard_name
from groundup.tokenizer import train_tokenizer
from groundup.toyland import write_world
from transformers import AutoTokenizer

RECIPE = Path(__file__).parents[1] / "recipes" / "prepare.py"
DOCUMENT = 4000  # bytes


def read_text(source: str | None, directory: Path) -> list[str]:
    """Documents to make files of."""
    if not source:
        write_world(directory / "world", seed=0, documents=20_000, held_out=10)
        source = str(directory / "world" / "documents.jsonl")
    together = "\n\n".join(load_documents(DataArguments(dataset=source)).rows["text"])
    return list(cut(together, DOCUMENT))


def write_corpus(path: Path, texts: list[str], size: int) -> int:
    """Write documents of `texts`, each numbered so that none is a duplicate, up to `size` bytes; how many."""
    generator, written, number = random.Random(0), 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            number += 1
            written += file.write(json.dumps({"text": f"{number}. {generator.choice(texts)}"}, ensure_ascii=False) + "\n")
    return number


def speed(corpus: Path, tokenizer_path: str, directory: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Of the pass and of the tokenizer alone: tokens a second, tokens a second of CPU time, and the pass's rate over it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    args = PrepareArguments(tokenizer_path, str(directory / "speed"), held_out_documents=0)
    preparation = Preparation(DataArguments(dataset=str(corpus)), args, tokenizer)
    preparation.scan()
    preparation.choose()
    texts = [json.loads(line)["text"] for line in open(corpus, encoding="utf-8")]  # noqa: SIM115
    batches, room = [[]], BATCH
    for text in texts:
        batches[-1].append(text)
        room -= len(text.encode())
        if room <= 0:
            batches.append([])
            room = BATCH
    backend = tokenizer.backend_tokenizer
    contestants = {
        "recipe": lambda: preparation._tokenise(0),
        "encode_batch_fast": lambda: [backend.encode_batch_fast(batch, add_special_tokens=False) and None for batch in batches],
        "encode_batch": lambda: [backend.encode_batch(batch, add_special_tokens=False) and None for batch in batches],
    }
    cpu: dict[str, list[float]] = {name: [] for name in contestants}

    def timed(name: str) -> None:
        began = time.process_time()
        contestants[name]()
        cpu[name].append(time.process_time() - began)

    wall = measure.in_turn({name: partial(timed, name) for name in contestants}, rounds, warm_up=1)
    tokens = json.loads((directory / "speed" / f"{shard_name('train', 0, 1)}.json").read_text())["tokens"]
    return {
        name: {
            "tokens_per_second": tokens / measure.median(wall[name]),
            "tokens_per_cpu_second": tokens / measure.median(cpu[name][1:]),
            "recipe_over_it": measure.median(alone / recipe for alone, recipe in zip(wall[name], wall["recipe"], strict=True)),
            "recipe_over_it_cpu": measure.median(a / recipe for a, recipe in zip(cpu[name][1:], cpu["recipe"][1:], strict=True)),
        }
        for name in contestants
    }


def memory(corpus: Path, tokenizer_path: str, directory: Path) -> dict[str, float]:
    """Peak resident set, bytes, and seconds of the whole recipe on a file."""
    questions = directory / "questions.jsonl"
    questions.write_text(json.dumps({"question": " ".join(f"word{n}" for n in range(20))}) + "\n")
    settings = {"dataset": corpus, "tokenizer_path": tokenizer_path, "output_dir": directory / "memory"}
    command = [sys.executable, str(RECIPE), *(part for key, value in settings.items() for part in (f"--{key}", str(value)))]
    against = json.dumps([{"path": str(questions), "columns": ["question"]}])
    seconds = measure.loop_timer(lambda: subprocess.run([*command, "--decontaminate_against", against], check=True), 1, warm_up=0)
    manifest = json.loads((directory / "memory" / "manifest.json").read_text())
    train = manifest["splits"]["train"]
    return {"peak_rss": measure.peak_rss(children=True), "seconds": seconds[0], "bytes": train["bytes"], "tokens": train["tokens"]}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the generated file for memory; 0: speed only")
    parser.add_argument("--megabytes", type=float, default=50.0, help="size of the generated file for speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab_size", type=int, default=800, help="toyland fills 800; 4096 or more suit real text")
    parser.add_argument("--text", help="a source of documents, as `dataset` of a recipe")
    options = parser.parse_args()
    if options.quick:
        options.gigabytes, options.megabytes, options.rounds = 0.01, 3.0, 3
    where = measure.header()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        texts = read_text(options.text, directory)
        train_tokenizer(texts[:2000], options.vocab_size).save_pretrained(directory / "tokenizer")
        write_corpus(directory / "speed.jsonl", texts, int(options.megabytes * 1e6))
        rates = speed(directory / "speed.jsonl", str(directory / "tokenizer"), directory, options.rounds)
        used = {}
        if options.gigabytes:
            write_corpus(directory / "memory.jsonl", texts, int(options.gigabytes * 1e9))
            used = memory(directory / "memory.jsonl", str(directory / "tokenizer"), directory)
    threads = {name: os.environ.get(name) for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")}
    head = ["", "tokens/s", "tokens/s of CPU time", "recipe over it", "the same in CPU time"]
    rows = [[name, *(f"{rate:,.0f}" if rate > 9 else f"{rate:.2f}" for rate in found.values())] for name, found in rates.items()]
    print(f"\n{measure.table(head, rows)}\n\nthreads: {threads}")
    if used:
        peak, seconds = used["peak_rss"] / 1e6, used["seconds"]
        print(f"whole recipe on a file of {options.gigabytes} GB: {seconds:.0f} s, peak resident set {peak:,.0f} MB")
    print()
    measure.last_line({**where, "speed": rates, "threads": threads, "gigabytes": options.gigabytes, **used})


if __name__ == "__main__":
    main()
