"""GRPO's gate on real word problems, and GRPO with a curriculum on the easiest of them.

python benchmarks/real_gate.py --ladder out/real_text --data ../shared/data

`--ladder` is a folder in which benchmarks/real_text.sh has trained `sft`; `--data` holds mawps/ and gsm8k/. The easiest problems
are told by the problem alone: one operation, whole numbers below 20. None of them is in the instruction tuning added here, which
shows the sum that mawps' own equation stands for ("8 - 2 = 6. Answer: 6"); and nothing added here, for GRPO neither, is a held-out
problem with other names and numbers. What is finished is not run again. `--quick` needs no ladder: its model is a random one.
"""

import gzip
import json
import random
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from groundup import answers, stats
from groundup.evaluation import Model
from groundup.scoreboard import gate_table
from groundup.verifier import shared
from measure import header, last_line, parser, table
from rl_throughput import made_up
from runs import ROOT, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

EASY, K, LONGEST = 20, 16, 40  # numbers below; tries; tokens of "(48 + 5) / 2 = 26.5. Answer: 26.5" and more
VARIANTS, PROBES = 4, 4  # the same problem with other numbers: for instruction tuning, and for a look at what was learnt
PARTS = ("shows one sum", "of the problem's numbers", "right operation", "reckoned right", "repeats the result")
RUNS = {"curriculum, seed 0": (True, 0), "curriculum, seed 1": (True, 1), "in turn, seed 0": (False, 0)}
QUICK: dict[str, dict[str, Any]] = {"sft": {"max_steps": 1, "per_device_train_batch_size": 8}}
QUICK["grpo"] = QUICK["sft"] | {"num_generations": 4, "gate_prompts": 2, "max_completion_length": 4, "force": True}
NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?!\w|\.\d)")
SIGNS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else float("nan"),
}


def written(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def work_out(equation: str, numbers: list[float]) -> tuple[str, float, bool]:
    """What an equation in mawps' prefix form says, its value, and whether each step on the way is a whole number from 0."""
    stack: list[tuple[str, float, bool]] = []
    for part in reversed(equation.split()):
        if part in SIGNS:
            (a, x, plain_a), (b, y, plain_b) = stack.pop(), stack.pop()
            value = SIGNS[part](x, y)
            text = " ".join((f"({a})" if " " in a else a, part, f"({b})" if " " in b else b))
            stack.append((text, value, plain_a and plain_b and value >= 0 and value == round(value, 6) // 1))
        else:
            value = numbers[int(part[6:])] if part.startswith("number") else float(part)
            stack.append((written(value), value, True))
    return stack.pop()


def is_easy(row: dict) -> bool:
    """One operation on two of the problem's numbers; all of these, and the answer, whole and below EASY."""
    parts = row["equation_prefix"].split()
    plain = all(n == int(n) and 0 <= n < EASY for n in [*row["numbers"], row["answer"]])
    return len(parts) == 3 and all(part.startswith("number") for part in parts[1:]) and plain


def shown(row: dict) -> dict[str, str]:
    """A problem with its answer, and the reply that shows the sum."""
    text, _, _ = work_out(row["equation_prefix"], row["numbers"])
    answer = written(row["answer"])
    operation = row["equation_prefix"].split()[0]
    said = {"question": row["question"], "answer": answer, "operation": operation}
    return said | {"completion": f"{text} = {answer}. Answer: {answer}"}


def with_other_numbers(row: dict, chance: random.Random) -> dict | None:
    """The problem with other numbers of the same size; None where they do not stand in it once each, or nothing fits."""
    sizes = [next((top for top in (EASY, 100, 1000) if n == int(n) and 0 < n < top), 0) for n in row["numbers"]]
    found = [float(number) for number in NUMBER.findall(row["question"])]
    if found != row["numbers"] or len(set(found)) < len(found) or not all(sizes):
        return None
    for _ in range(200):
        numbers = [float(chance.randrange(1, size)) for size in sizes]
        _, answer, plain = work_out(row["equation_prefix"], numbers)
        if plain and answer < max(sizes) and len({*numbers, *found}) == 2 * len(found):  # all others, and no two alike
            each = iter(numbers)
            question = NUMBER.sub(lambda match: written(next(each)), row["question"])  # noqa: B023 (used up at once)
            return row | {"question": question, "numbers": numbers, "answer": answer}
    return None


def mould(question: str) -> str:
    """What is left of a problem without names and numbers."""
    return " ".join(re.sub(r"\b[A-Z]\w*|\d+(?:\.\d+)?", "_", question).lower().split())


def prepare(rows: list[dict], folder: Path) -> dict[str, list[dict]]:
    """Write the files that the recipes read; returns all that was made, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    rows = [row for row in rows if abs(work_out(row["equation_prefix"], row["numbers"])[1] - row["answer"]) < 1e-6]
    rows = [row for row in rows if all(round(n, 2) == n for n in [*row["numbers"], row["answer"]])]  # no 4.333333333333333
    held_out = [row for row in rows if row["fold"] == "dev"]
    moulds = {mould(row["question"]) for row in held_out}
    train = [row for row in rows if row["fold"] == "train" and mould(row["question"]) not in moulds]
    easy = [row for row in held_out if is_easy(row)]
    worked = [row for row in train if not is_easy(row)]
    drills = [
        {"question": f"What is {a} {sign} {b}?", "numbers": [a, b], "equation_prefix": f"{sign} number0 number1", "answer": answer}
        for a in range(EASY)
        for b in range(EASY)
        for sign, work in SIGNS.items()
        if (answer := work(a, b)) in range(EASY)
    ]
    changed = [(row, with_other_numbers(row, chance)) for row in worked for _ in range(VARIANTS)]
    probes = [
        other | {"item": n} for n, row in enumerate(easy) for _ in range(PROBES) if (other := with_other_numbers(row, chance))
    ]
    made = {
        "problems_train": [shown(row) for row in rows if row["fold"] == "train"],
        "easiest_train": [shown(row) for row in train if is_easy(row)],
        "easiest": [shown(row) for row in easy],
        "easiest_other_numbers": [shown(row) | {"item": row["item"]} for row in probes],
        "one_operation": [shown(row) for row in held_out if len(row["equation_prefix"].split()) == 3 and not is_easy(row)],
        "sums": [
            {"prompt": said["question"], "completion": said["completion"]}
            for said in map(shown, [*worked, *(other for _, other in changed if other), *drills])
        ],
    }
    for name, some in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        print(f"{name}: {len(some):,} rows")
    print(f"left out as held-out problems with other names and numbers: {sum(r['fold'] == 'train' for r in rows) - len(train)}")
    return made


def train(name: str, directory: Path, quick: bool, **changed: Any) -> Path:
    """`recipes/real/<name>.yaml`, some of it changed, trained into `directory`."""
    settings = yaml.safe_load((ROOT / "recipes" / "real" / f"{name}.yaml").read_text()) | changed
    settings |= {"output_dir": str(directory), "save_strategy": "no", **(QUICK[name] if quick else {})}
    recipe(name, {key: value for key, value in settings.items() if value is not None}, directory.with_suffix(".yaml"))
    return directory


def gate(model: Path, problems: Path, directory: Path, quick: bool) -> dict[str, Any]:
    """gate.json of `model` on `problems`: what recipes/grpo.py finds before its first step, which is taken and thrown away."""
    asked = {"max_completion_length": LONGEST, "gate_prompts": 128, "force": True, "max_steps": 1, "num_generations": K}
    train("grpo", directory, quick, dataset=str(problems), model_name_or_path=str(model), log_completions=False, **asked)
    return json.loads((directory / "gate.json").read_text())


def measure(path: Path, sets: dict[str, list[dict]], quick: bool) -> dict[str, Any]:
    """Greedy replies to every set, K sampled ones to the easiest, graded as GRPO grades; and what chance would grade."""
    model = Model(AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path), 128)
    found: dict[str, Any] = {}
    for name in ("easiest", "easiest_other_numbers", "one_operation"):
        rows = sets[name][: 8 if quick else None]
        replies = [reply for reply, _ in model.replies([row["question"] for row in rows], LONGEST)]
        right = grade(replies, [row["answer"] for row in rows])
        found[name] = {
            "greedy": stats.estimate(right, clusters=[row["item"] for row in rows] if "item" in rows[0] else None),
            "right": right,
            "replies": replies,
            "shuffled": by_chance(replies, rows),
            "says_most": Counter(answers.extract(reply) for reply in replies).most_common(1)[0],
            "parts": {part: statistics.fmean(anatomy(*pair)[part] for pair in zip(replies, rows, strict=True)) for part in PARTS},
            "operations": {
                sign: [sum(hits), len(hits)]
                for sign in SIGNS
                if (hits := [hit for hit, row in zip(right, rows, strict=True) if row["operation"] == sign])
            },
        }
    rows, k = sets["easiest"][: 8 if quick else None], 2 if quick else K
    asked = [row for row in rows for _ in range(k)]
    replies = [reply for reply, _ in model.replies([row["question"] for row in asked], LONGEST, temperature=1.0)]
    hits = grade(replies, [row["answer"] for row in asked])
    found["sampled"] = stats.estimate(hits, clusters=[n // k for n in range(len(hits))])
    found["sampled_shuffled"] = by_chance(replies, asked, k)
    found["any_of_k"] = stats.estimate([max(hits[n : n + k]) for n in range(0, len(hits), k)])
    return found


def anatomy(reply: str, row: dict) -> dict[str, float]:
    """Which parts of a reply that shows one sum of two numbers are right, whatever the others are; one that does not has none."""
    shape = re.fullmatch(r"(\S+) ([-+*/]) (\S+) = (\S+)\. Answer: (\S+)", reply)
    numbers = [NUMBER.fullmatch(shape[n]) for n in (1, 3, 4)] if shape else [None]
    if not shape or not all(numbers):
        return dict.fromkeys(PARTS, 0.0)
    a, b, said = float(shape[1]), float(shape[3]), shape[4]
    asked = [float(number) for number in NUMBER.findall(row["question"])]
    return {
        "shows one sum": 1.0,
        "of the problem's numbers": float(a in asked and b in asked),
        "right operation": float(shape[2] == row["operation"]),
        "reckoned right": float(written(SIGNS[shape[2]](a, b)) == said),
        "repeats the result": float(said == shape[5]),
    }


def by_chance(replies: list[str], rows: list[dict], k: int = 1) -> float:
    """Share that would be right had each reply, of k in a row to a problem, been given to one of the other problems."""
    golds = [row["answer"] for row in rows]
    return statistics.fmean(hit for n in range(k, len(rows), k) for hit in grade(replies, golds[n:] + golds[:n]))


def grade(replies: list[str], golds: list[str]) -> list[float]:
    return [float(right) for right in shared().grade_batch(replies, golds)]


def rules(train: list[dict], rows: list[dict]) -> dict[str, float]:
    """What one would score on `rows` who did not read: the commonest answer, or one operation on the first two numbers."""
    commonest = Counter(row["answer"] for row in train).most_common(1)[0][0]
    scores = {f"always {commonest}": statistics.fmean(row["answer"] == commonest for row in rows)}
    for sign, work in SIGNS.items():
        pairs = [sorted(map(float, (NUMBER.findall(row["question"]) + ["0"])[:2]), reverse=True) for row in rows]
        scores[f"always {sign}"] = statistics.fmean(
            written(work(*pair)) == row["answer"] for pair, row in zip(pairs, rows, strict=True)
        )
    return scores


def a_few_problems() -> list[dict]:
    """Made-up rows in mawps' form, for `--quick`."""
    moulds = {
        "+": "Ann has {} red pears and finds {} green ones. How many pears has she?",
        "-": "There were {} ships and {} sailed away. How many are left?",
        "*": "Each of {} boxes holds {} caps. How many caps are there?",
    }
    return [
        {
            "question": mould.format(a, b),
            "numbers": [float(a), float(b)],
            "equation_prefix": f"{sign} number0 number1",
            "answer": float(SIGNS[sign](a, b)),
            "fold": "dev" if sign == "-" else "train",
        }
        for sign, mould in moulds.items()
        for a in (9, 15, 30)
        for b in (1, 2, 6)
    ]


def percent(estimate: dict[str, float]) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def outcomes(found: dict[str, dict[str, Any]]) -> str:
    """Tables: how many of the held-out problems each model solves, and what that is worth."""
    start = found["sums shown"]["easiest"]["right"]
    solved, worth = [], []
    for name, one in found.items():
        easiest = one["easiest"]
        cells = [easiest["greedy"], one["sampled"], one["any_of_k"]]
        cells += [stats.difference(easiest["right"], start), one["easiest_other_numbers"]["greedy"], one["one_operation"]["greedy"]]
        solved.append([name, *map(percent, cells)])
        chance = [f"{100 * share:.0f} %" for share in (easiest["shuffled"], one["sampled_shuffled"])]
        most, times = easiest["says_most"]
        worth.append(
            [
                name,
                f"{most}, {times} of {len(start)}",
                *chance,
                *(f"{right:.0f} of {of}" for right, of in easiest["operations"].values()),
            ]
        )
    names = ["held out", "easiest, greedy", "sampled", f"any of {K}", "greedy, gained", "with other numbers", "larger numbers"]
    signs = list(next(iter(found.values()))["easiest"]["operations"])
    heads = ["greedy, easiest", "says most", "to another problem", "sampled, to another", *signs]
    parts = [[name, *(f"{100 * share:.0f} %" for share in one["easiest"]["parts"].values())] for name, one in found.items()]
    return "\n\n".join((table(names, solved), table(heads, worth), table(["greedy, easiest", *PARTS], parts)))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ladder", type=Path, help="folder that holds out/real/sft")
    arguments.add_argument("--data", type=Path, help="folder that holds mawps/ and gsm8k/")
    arguments.add_argument("--work", type=Path, default=Path("out/real_gate"))
    arguments.add_argument("--runs", type=int, default=len(RUNS), help=f"of GRPO, the first of: {'; '.join(RUNS)}")
    arguments.add_argument("--steps", type=int, default=50, help="of GRPO")
    args = arguments.parse_args()
    if not args.quick and not (args.ladder and args.data):
        raise SystemExit("error: give --ladder, where benchmarks/real_text.sh has run, and --data")
    about = header()
    if args.quick:
        work, rows = Path(tempfile.mkdtemp()), a_few_problems()
        made_up(work)
        start = work / "model"
    else:
        work, start = args.work.resolve(), args.ladder.resolve() / "out" / "real" / "sft"
        with gzip.open(args.data / "mawps" / "mawps.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    sets = prepare(rows, work / "prepared")
    files = {name: work / "prepared" / f"{name}.jsonl" for name in sets}

    sums = train("sft", work / "sums", args.quick, datasets=None, dataset=str(files["sums"]), model_name_or_path=str(start))
    models = {"the chat model": start, "sums shown": sums}

    # What the gate says of both
    gates: dict[str, dict[str, Any]] = {}
    problems = {"mawps": files["problems_train"]} | ({} if args.quick else {"gsm8k": args.data.resolve() / "gsm8k/train.jsonl.gz"})
    problems["easiest"] = files["easiest_train"]
    for model in ("sums shown",) if args.quick else models:
        for name, path in list(problems.items())[: 1 if args.quick else None]:
            gates[f"{model}, {name}"] = gate(models[model], path, work / f"gate-{models[model].name}-{name}", args.quick)
    lines = [[name, *gate_table(found)[-1][1:], "go on" if found["signal"] else "stop"] for name, found in gates.items()]
    print("\n" + table(["model, problems", *gate_table(next(iter(gates.values())))[0][1:], "verdict"], lines) + "\n")

    # GRPO on the easiest problems
    changes = {"dataset": str(files["easiest_train"]), "model_name_or_path": str(sums), "gate_prompts": 0, "num_generations": 8}
    changes |= {"per_device_train_batch_size": 64, "max_steps": args.steps, "max_completion_length": LONGEST}
    for name, (curriculum, seed) in list(RUNS.items())[: 1 if args.quick else args.runs]:
        directory = work / f"grpo-{name.replace(', ', '-').replace(' ', '-')}"
        models[f"GRPO, {name}"] = train("grpo", directory, args.quick, curriculum=curriculum, seed=seed, **changes)

    # Held out, before and after
    found = {name: measure(path, sets, args.quick) for name, path in models.items()}
    guesses = {name: rules(sets["easiest_train"], sets[name]) for name in ("easiest", "easiest_other_numbers", "one_operation")}
    print(outcomes(found) + "\n")
    lines = [[name, *(f"{100 * share:.0f} %" for share in shares.values())] for name, shares in guesses.items()]
    print(table(["without reading", *guesses["easiest"]], lines))
    for name, one in found.items():
        for row, reply in list(zip(sets["easiest"], one["easiest"]["replies"], strict=False))[:3]:
            print(f"\n{name}: {row['question']} -> {reply!r}")
    for one in found.values():  # pages of them
        for name in ("easiest", "easiest_other_numbers", "one_operation"):
            del one[name]["replies"]
    last_line({**about, "gates": gates, "held_out": found, "without_reading": guesses})


if __name__ == "__main__":
    main()
