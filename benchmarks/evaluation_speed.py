"""How fast groundup scores multiple choice beside lm-evaluation-harness itself: the same questions and model, in one process.

    python benchmarks/evaluation_speed.py --quick
    python benchmarks/evaluation_speed.py --task_data DATA --tasks local_arc_easy local_hellaswag
    python benchmarks/evaluation_speed.py --model out/nano/sft

A contestant gets a task's requests as the harness makes them, texts of contexts and continuations, and gives their log-likelihoods:
the harness's own model of transformers at several batch sizes, of which its fastest counts, and ours, which `--tasks` of
recipes/evaluate_model.py uses. Rounds alternate; figures are medians. How far the log-likelihoods differ is printed beside them.
Without --task_data the questions are of toyland; without --model the weights are random, of a model trained by nobody.
"""

import importlib.util
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import measure
from groundup.configs import DataArguments
from groundup.data import load_documents
from groundup.model import build_config, build_model
from groundup.tokenizer import train_tokenizer
from groundup.toyland import write_world

TASKS = Path(__file__).parents[1] / "recipes" / "tasks"
OURS = "groundup"


def toyland_questions(count: int, directory: Path) -> list[list[tuple[str, str]]]:
    """The beginnings of documents, each with its own next words and those of three others."""
    write_world(directory, seed=0, documents=2 * count, held_out=10)
    texts = load_documents(DataArguments(dataset=str(directory / "documents.jsonl"))).rows["text"]
    generator = random.Random(0)
    questions, words = [], [text.split() for text in texts[:count]]
    ends = [" ".join(w[25 : 25 + generator.randint(2, 12)]) or w[0] for w in words]
    for own, start in zip(ends, words, strict=True):
        questions.append([(" ".join(start[:25]), f" {end}") for end in [own, *generator.choices(ends, k=3)]])
    return questions


def task_questions(task: str, data: str, count: int) -> list[list[tuple[str, str]]]:
    """The first questions of a task of recipes/tasks, as the harness asks them."""
    from groundup.evaluation import EvaluationArguments
    from groundup.harness import Tasks

    loaded = Tasks(EvaluationArguments(tasks=task, task_data=data), TASKS).loaded["tasks"][task]
    loaded.build_all_requests(limit=count, rank=0, world_size=1)
    questions: dict[int, list] = {}
    for request in loaded.instances:
        questions.setdefault(request.doc_id, []).append(request.args)
    return list(questions.values())


def compare(questions: list[list[tuple[str, str]]], model, tokenizer, sizes: list[int], rounds: int) -> dict:
    """Questions a second of each contestant, and ours over the harness's best, by the clock and by CPU time."""
    from groundup.evaluation import Model
    from groundup.harness import Scorer  # first: it quietens the harness
    from lm_eval.models.huggingface import HFLM

    requests = [SimpleNamespace(args=pair) for question in questions for pair in question]
    asked = Model(model, tokenizer, max(sizes))
    theirs = {f"lm-eval, {size}": HFLM(model, tokenizer=tokenizer, batch_size=size, prefix_token_id=asked.start) for size in sizes}
    contestants = {**theirs, OURS: Scorer(asked)}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    said: dict[str, list] = {}

    def timed(name: str) -> None:
        began = time.process_time()
        said[name] = contestants[name].loglikelihood(requests, disable_tqdm=True)
        cpu[name].append(time.process_time() - began)

    wall = measure.in_turn({name: partial(timed, name) for name in contestants}, rounds, warm_up=1)
    seconds = {name: measure.median(found) for name, found in wall.items()}
    cpu_seconds = {name: measure.median(found[1:]) for name, found in cpu.items()}
    apart = [abs(a[0] - b[0]) for name in theirs for a, b in zip(said[name], said[OURS], strict=True)]
    return {
        "questions": len(questions),
        "choices": len(requests),
        "questions_per_second": {name: len(questions) / found for name, found in seconds.items()},
        "ours_over_theirs": min(seconds[name] for name in theirs) / seconds[OURS],
        "ours_over_theirs_cpu": min(cpu_seconds[name] for name in theirs) / cpu_seconds[OURS],
        "largest_difference": max(apart),
        "largest_log_likelihood": max(abs(logp) for logp, _ in said[OURS]),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--task_data", help="folder with the data of recipes/tasks")
    parser.add_argument("--tasks", nargs="+", default=["local_arc_easy", "local_hellaswag", "local_csqa"])
    parser.add_argument("--questions", type=int, default=200, help="of each task")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32], help="ours takes the largest")
    parser.add_argument("--model", help="stage directory or Hub id; else random weights of --width and --layers")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab_size", type=int, default=4096, help="with --task_data; toyland has 800")
    options = parser.parse_args()
    if options.quick:
        options.questions, options.rounds, options.width, options.layers = 16, 1, 64, 2
    if not importlib.util.find_spec("lm_eval"):
        parser.error("lm-evaluation-harness is not installed: pip install 'groundup[eval]'")
    where = measure.header()
    with tempfile.TemporaryDirectory() as name:
        if options.task_data:
            asked = {task: task_questions(task, options.task_data, options.questions) for task in options.tasks}
        else:
            asked = {"toyland": toyland_questions(options.questions, Path(name))}
    if options.model:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    else:
        texts = ["".join(pair) for questions in asked.values() for question in questions for pair in question]
        tokenizer = train_tokenizer(texts, options.vocab_size if options.task_data else 500, max_length=512)
        heads = {"num_attention_heads": options.width // 32, "num_hidden_layers": options.layers}
        sizes = {"hidden_size": options.width, "intermediate_size": 3 * options.width, **heads}
        model = build_model(build_config("qwen3", tokenizer, sizes, max_length=512), seed=0)
    found = {task: compare(questions, model, tokenizer, options.batch_sizes, options.rounds) for task, questions in asked.items()}
    names = list(next(iter(found.values()))["questions_per_second"])
    head = ["questions/s", *names, "ours over their best", "in CPU time", "largest difference, nats"]
    rows = [
        [task, *(f"{f['questions_per_second'][n]:.1f}" for n in names), f"{f['ours_over_theirs']:.2f}"]
        + [f"{f['ours_over_theirs_cpu']:.2f}", f"{f['largest_difference']:.1e} of {f['largest_log_likelihood']:.0f}"]
        for task, f in found.items()
    ]
    print(f"\n{measure.table(head, rows)}\n")
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {options.rounds} rounds\n")
    figures = {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "rounds": options.rounds, "tasks": found}
    measure.last_line({**where, **figures})


if __name__ == "__main__":
    main()
