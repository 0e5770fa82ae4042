"""What benchmarks/real_text.sh left in OUT, as a Markdown section for benchmarks/RESULTS.md, on standard output.

python benchmarks/real_text_table.py out/real_text

Every figure is read from run.json, eval.json, trainer_state.json, completions/*.parquet, or counted in prepared/*.jsonl.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from groundup import record, stats
from measure import last_line, parser

RUNGS = ("random", "pretrain", "sft", "reward", "ppo", "grpo")
METRICS = {  # key in eval.json -> heading
    "bits_per_byte": "bits per byte, held-out novels",
    "asked": "questions about a passage",
    "problems": "word problems",
    "problems_sampled": "word problems, sampled",
    "problems_pass_at_k": "word problems, any of k",
    "stops": "ends its turn",
}
TRAINED = {  # rung -> log keys whose first and last values are shown
    "pretrain": ("loss", "eval_bits_per_byte", "tokens_per_second"),
    "sft": ("loss",),
    "reward": ("loss", "accuracy", "eval_accuracy"),
    "ppo": ("objective/score", "objective/kl", "ended", "completions/mean_length", "explained_variance"),
    "grpo": ("rewards/correct_answer/mean", "rewards/answer_format/mean", "frac_reward_zero_std"),
}
SAMPLES = 3


def read_rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(estimate: dict | None) -> str:
    """Value and 95 % interval."""
    return "" if not estimate else f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def fenced(*parts: str) -> str:
    """Verbatim, whatever backticks a model writes."""
    text = "\n".join(parts)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def machine(out: Path, runs: dict[str, dict]) -> str:
    run = next(iter(runs.values()))
    hardware, versions = run["hardware"], run["versions"]

    def noted(name: str) -> str:
        return (out / name).read_text().strip() if (out / name).is_file() else ""

    lines = {
        "machine": f"{hardware['machine']}, {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB"
        + "".join(f", {gpu}" for gpu in hardware["gpus"]),
        "date": run["started"][:10],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": noted("commit") or str(run["git_commit"]),
        "seeds": ", ".join(sorted({str(r["seed"]) for r in runs.values()})),
        "command": f"`{noted('command')}`",
    }
    if noted("mode") in ("quick", "look"):
        lines["mode"] = "**A few steps of each rung; these figures say only that it runs**"
    return "\n".join(f"- {key}: {value}" for key, value in lines.items())


def times(out: Path, runs: dict[str, dict]) -> str:
    """Seconds of training from run.json, and of the whole command, start-up included, from the script's clock."""
    lines, total = [], 0.0
    for name in ("tokenizer", *RUNGS[1:], "evaluate"):
        clock, run = out / "seconds" / name, runs.get(name, {})
        whole = float(clock.read_text()) if clock.is_file() else run.get("seconds")
        if whole is None:
            continue
        total += whole
        count = f"{run['tokens']:,}" if run.get("tokens") else ""
        parameters = f"{run['parameters']:,}" if run.get("parameters") else ""
        lines.append([name, parameters, str(run.get("steps", "")), count, minutes(whole)])
    lines.append(["in all", "", "", "", minutes(total)])
    return table(["rung", "parameters", "steps", "tokens", "minutes"], lines)


def measured(evaluations: dict[str, dict]) -> str:
    names = [key for key in METRICS if any(key in e["metrics"] for e in evaluations.values())]
    lines = [
        [rung, *(shown(evaluation["metrics"].get(key)) for key in names)]
        for rung, evaluation in evaluations.items()
        if any(key in evaluation["metrics"] for key in names)
    ]
    sizes = {METRICS[key]: {e["metrics"][key]["n"] for e in evaluations.values() if key in e["metrics"]} for key in names}
    counts = ", ".join(f"{heading}: {'/'.join(map(str, sorted(n)))}" for heading, n in sizes.items())
    k = sorted({e["settings"]["k"] for e in evaluations.values()})
    return f"{table(['rung', *(METRICS[key] for key in names)], lines)}\n\nn: {counts}. k = {', '.join(map(str, k))}."


def preferred(out: Path, evaluations: dict[str, dict]) -> str:
    """The reward model beside the rule "the longer reply is better", on the same pairs."""
    accuracy = evaluations.get("reward", {}).get("metrics", {}).get("pair_accuracy")
    # The suite measures the first rows of the file, all of them unless `max_rows` says otherwise
    pairs = read_rows(out / "prepared" / "preferences.jsonl")[: accuracy["n"] if accuracy else None]
    longer = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in ((len(r["chosen"]), len(r["rejected"])) for r in pairs)]
    ties = sum(value == 0.5 for value in longer)
    decided = [value for value in longer if value != 0.5]
    low, high = stats.wilson(int(sum(decided)), len(decided))
    questions = Counter(row["prompt"] for row in pairs)
    baseline = {"value": sum(longer) / len(longer), "low": low, "high": high}
    clustered = stats.estimate(longer, clusters=[row["prompt"] for row in pairs])
    lines = [
        ["reward model", shown(accuracy)],
        ["the longer reply", shown(baseline)],
        ["the longer reply, questions resampled", shown(clustered)],
    ]
    return (
        table([f"held-out pairs: {len(pairs)} of {len(questions)} questions", "accuracy"], lines)
        + f"\n\nThe first two intervals are Wilson's, as if pairs were independent; those of one question are not, and the"
        f" third line shows what that is worth. {ties} pairs of equal length count half in the value and are left out of the"
        " Wilson interval."
    )


def course(out: Path, rung: str) -> list[list[str]]:
    """First and last logged value of each figure, and the mean of the first and the last fifth of its log lines."""
    history = (record.read_json(out / "out" / "real" / rung / "trainer_state.json") or {}).get("log_history", [])
    lines = []
    for key in TRAINED[rung]:
        values = [entry[key] for entry in history if isinstance(entry.get(key), int | float)]
        if values:
            fifth = max(1, len(values) // 5)
            ends = (sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth)
            lines.append([rung, f"`{key}`", *map(number, (values[0], values[-1], *ends)), str(len(values))])
    return lines


def rollouts(directory: Path) -> str:
    """The first completions of the first and of the last log line, with their scores, as the trainer kept them."""
    files = sorted((directory / "completions").glob("*.parquet"))
    parts = []
    for path in dict.fromkeys(files[:1] + files[-1:]):
        for row in pq.read_table(path).slice(0, SAMPLES).to_pylist():
            scores = {key: v for key, v in row.items() if isinstance(v, float) and key != "advantage"}
            said = [text if isinstance(text, str) else text[-1]["content"] for text in (row["prompt"], row["completion"])]
            score = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
            parts.append(f"Step {row['step']}, {score}:\n\n{fenced(said[0], '---', said[1])}")
    return "\n\n".join(parts)


def replies(evaluation: dict) -> str:
    """Three greedy replies of the suite: questions and problems in turn."""
    kinds: dict[str, list[dict]] = {}
    for sample in evaluation["samples"]:
        kinds.setdefault(sample["kind"], []).append(sample)
    most = max(map(len, kinds.values()), default=0)
    in_turn = [of[i] for i in range(most) for of in kinds.values() if i < len(of)]
    return "\n\n".join(f"{s['kind'].capitalize()}:\n\n{fenced(s['prompt'], '---', s['reply'])}" for s in in_turn[:SAMPLES])


def main(out: Path) -> None:
    runs = {rung: run for rung in RUNGS if (run := record.read(out / "out" / "real" / rung))}
    evaluations = {rung: e for rung in RUNGS if (e := record.read_evaluation(out / "out" / "real" / rung))}
    if not runs or not evaluations:
        sys.exit(f"error: no measured rung in {out}/out/real: run benchmarks/real_text.sh first")
    unfinished = [rung for rung in RUNGS if rung not in evaluations or runs.get(rung, {}).get("status") != "finished"]
    sections = ["## Real text", machine(out, runs)]
    if unfinished:
        sections.append(f"**Not finished or not measured: {', '.join(unfinished)}.**")
    sections += ["### Time", times(out, runs), "### Held out", measured(evaluations)]
    sections += ["### Preferences", preferred(out, evaluations), "### Training"]
    lines = [line for rung in TRAINED for line in course(out, rung)]
    sections.append(table(["rung", "figure", "first", "last", "first fifth", "last fifth", "log lines"], lines))
    sections.append("### Samples, verbatim\n\nPrompt, a line `---`, reply. Greedy, held out; not chosen: the first of the file.")
    for rung, evaluation in evaluations.items():
        if evaluation["samples"]:
            sections += [f"#### {rung}", replies(evaluation)]
    for rung in ("ppo", "grpo"):
        if said := rollouts(out / "out" / "real" / rung):
            sections += [f"#### {rung}, in training, temperature 1", said]
    print("\n\n".join(sections) + "\n")
    values = {rung: {key: found["value"] for key, found in e["metrics"].items()} for rung, e in evaluations.items()}
    last_line({"metrics": values, "seconds": {rung: run.get("seconds") for rung, run in runs.items()}, "unfinished": unfinished})


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("out", type=Path, metavar="OUT")
    main(arguments.parse_args().out)
