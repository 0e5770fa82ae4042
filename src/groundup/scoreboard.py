"""What the numbers in `eval.json` mean, and the order and the form in which they are shown."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

LADDER = ("tokenizer", "random", "pretrain", "sft", "dpo", "reward", "ppo", "grpo")


@dataclass(frozen=True)
class Metric:
    label: str
    explanation: str
    share: bool = True
    better: str | None = "higher"  # or "lower"; None: not known, so nothing is called best, a gain or a loss


METRICS = {
    "bits_per_byte": Metric("Bits per byte", "Bits needed per byte of held-out text.", False, "lower"),
    "bits_per_token": Metric("Bits per token", "Bits needed per token of held-out text.", False, "lower"),
    "cloze": Metric("Cloze", "Fact sentences completed with the right one of eight endings; chance is 1/8."),
    "choices": Metric("Choices", "Questions answered with the likeliest choice."),
    "choices_norm": Metric("Choices, by length", "Questions answered with the choice that is the likeliest by character."),
    "asked": Metric("Asked", "Questions in chat form answered exactly, over all people."),
    "unasked": Metric("Unasked", "Questions on facts that no training conversation ever asked for."),
    "follows": Metric("Follows", "Told to answer in short, gives exactly the one right sentence."),
    "stops": Metric("Stops", "The model ends its turn by itself."),
    "pair_accuracy": Metric("Pair accuracy", "The reward model prefers the preferred reply of held-out pairs."),
    "true_win_rate": Metric(
        "True win rate",
        "Replies beat the SFT model's under the world's hidden taste; ties count half, and a reply that never ends loses.",
    ),
    "kl_from_reference": Metric(
        "KL from SFT", "Nats by which sampled replies are likelier than under the model that the win rate is over.", False, None
    ),
    "problems": Metric("Problems", "Word problems solved by the greedy answer."),
    "problems_sampled": Metric(
        "Problems, sampled", "Word problems solved by one sample at temperature 1: the mean over k samples."
    ),
    "problems_pass_at_k": Metric("Problems, any of k", "Word problems for which any of k sampled answers is right."),
    "problems_harder": Metric("Harder problems", "Problems harder than any that GRPO trained on, solved by the greedy answer."),
    "problems_harder_sampled": Metric("Harder, sampled", "Harder problems solved by one sample: the mean over k samples."),
    "problems_harder_pass_at_k": Metric("Harder, any of k", "Harder problems for which any of k sampled answers is right."),
}


def metric(name: str) -> Metric:
    """What is known about a metric, also about one that is not in METRICS."""
    if name in METRICS:
        return METRICS[name]
    label = name.replace("_", " ")
    if "/" in name:
        kind = name.rpartition("/")[2]
        lower = any(word in kind for word in ("perplexity", "bits", "brier"))
        share = not lower and not any(word in kind for word in ("bleu", "chrf", "rouge", "ter"))
        return Metric(name, "A task of lm-evaluation-harness.", share, "lower" if lower else "higher")
    if name.startswith("bits_") or name.endswith(("loss", "perplexity")):
        return Metric(label, "", False, "lower")
    if name.endswith(("accuracy", "rate", "share", "pass_at_k")):
        return Metric(label, "")
    return Metric(label, "", False, None)


def order_metrics(names: Iterable[str]) -> list[str]:
    """The known ones in the order of METRICS, then the others by name."""
    known = list(METRICS)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def show_metric(name: str, result: dict | None) -> str:
    """`97 % (94-99)`, `1.93 (1.90-1.96)`; empty where there is no value."""
    value, low, high = measured(result)
    if value is None:
        return ""
    number = _percent if metric(name).share else lambda x: f"{x:.2f}" if abs(x) < 100 else f"{x:,.0f}"
    text = number(value) + (" %" if metric(name).share else "")
    if low is None or high is None:
        return text
    return f"{text} ({number(low)}{'-' if low >= 0 else ' to '}{number(high)})"


def show_difference(name: str, result: dict) -> str:
    """`+3.0 pts (-1.2 to +7.3)`, `-0.012 (-0.020 to -0.003)`: as many digits as the interval is worth."""
    value, low, high = measured(result)
    if value is None:
        return ""
    scale, unit, most = (100, " pts", 1) if metric(name).share else (1, "", 4)
    width = scale * ((high - low) if low is not None and high is not None else abs(value))
    digits = min(max(1 - math.floor(math.log10(width)), 0), most) if width else most
    while digits < most + 1 and any(x and not round(scale * x, digits) for x in (low, high)):
        digits += 1  # an interval that does not reach 0 must not read as if it did

    def number(x: float) -> str:
        text = f"{scale * x:+.{digits}f}"
        return text if float(text) else text[1:]

    return f"{number(value)}{unit}" + (f" ({number(low)} to {number(high)})" if low is not None and high is not None else "")


def show_overlap(result: dict | None) -> str:
    """`3 %` of the items stand in the training data, `not checked`, or nothing where nobody asked."""
    share = (result or {}).get("contaminated")
    return share if isinstance(share, str) else "" if share is None else f"{_percent(share)} %"


OVERLAP = "†: share of the items that stand in the files the model, or one before it, was trained on; ? is not checked."


def mark_overlap(result: dict | None) -> str:
    """The same beside a figure, small and in one piece: `†3%`, `†?`; OVERLAP explains it."""
    share = show_overlap(result)
    return share and ("†?" if share == "not checked" else f"†{share}".replace(" ", ""))


def measured(result: dict | None) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of one entry of `eval.json`'s metrics, each None where it is missing or not finite."""

    def number(key: str) -> float | None:
        value = (result or {}).get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if is_number and math.isfinite(value) else None

    return number("value"), number("low"), number("high")


def _percent(share: float) -> str:
    percent = 100 * share
    # 99.7 must not read as "all", nor 0.3 as "none".
    return f"{min(max(percent, 0.1), 99.9):.1f}" if 0 < percent < 1 or 99 < percent < 100 else f"{percent:.0f}"


GATE_COLUMNS = {
    "pass_at_1": "pass@1",
    "pass_at_k": "pass@{k}",
    "mixed": "some of {k}",
    "by_chance": "by chance",
    "in_format": "in format",
    "cut_off": "cut off",
}


def gate_table(found: dict) -> list[list[str]]:
    """Heading and rows of what `gate.json` holds (groundup.gate)."""
    columns = [name for name in GATE_COLUMNS if name in found["all"]]
    rows = [["difficulty", "prompts", *(GATE_COLUMNS[name].format(k=found["k"]) for name in columns)]]
    lines = found["by_difficulty"] if len(found["by_difficulty"]) > 1 else {}
    for level, line in [*lines.items(), ("all", found["all"])]:
        rows.append([level, str(line["mixed"]["n"]), *(show_metric("share", line.get(name)) for name in columns)])
    return rows
