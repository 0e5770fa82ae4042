"""What PPO and GRPO logged as they went: how far the policy drifted, what it still learned from, and reward against truth."""

import statistics
from typing import Any

from groundup import scoreboard
from groundup.words import is_number

# Log key -> (label, a share or not, what it tells). Of keys with one label a rung logs one.
WATCHED = {
    "objective/kl": ("KL, nats a reply", False, "How far the policy is from its start, over a whole reply; a few nats are usual."),
    "kl": ("KL, nats a token", False, "How far the policy is from its reference, a token."),
    "completions/mean_length": ("Tokens a completion", False, "Running away to the limit is a reward that likes length."),
    "completions/clipped_ratio": ("Cut off at the limit", True, "Completions that had not ended at `max_completion_length`."),
    "entropy": ("Entropy, nats a token", False, "How open the next token is; near 0 there is nothing left to try."),
    "frac_reward_zero_std": ("Flat groups", True, "Groups whose completions all fare alike, from which GRPO learns nothing."),
    "clip_ratio/region_mean": (
        "Clipped tokens",
        True,
        "Tokens held back, as they had moved more than `epsilon` since the rollout.",
    ),
    "value_loss": ("Value loss", False, "The critic's error."),
    "explained_variance": ("Explained variance", False, "The critic's forecasts: 1 is perfect, 0 no better than one number."),
    "verifier/timeouts": ("Verifier's timeouts", False, "Answers that took too long to check, a batch."),
}
TRUTHS = ("true_win_rate", "problems", "problems_harder")  # measured on held-out items, whatever was paid for


def diagnose(rung: dict, history: list[dict[str, Any]], table: list[dict]) -> dict[str, Any] | None:
    """One rung's diagnostics for the page; None where it has neither a log of rollouts nor a gate.

    `figures` are `[label, first, last, lowest, highest, meaning]`, `rewards` are `[what, before, after]`, `verdict` says whether
    reward and truth moved together, `gate` whether there was anything to learn from.
    """
    logged = [entry for entry in history if "reward" in entry]
    if not logged and not rung["gate"]:
        return None
    config = rung["config"] or {}
    figures = []
    for key, (label, share, meaning) in WATCHED.items():
        values = [entry[key] for entry in logged if is_number(entry.get(key))]
        if values and (any(values) or not key.startswith("verifier/")):
            shown = (values[0], values[-1], min(values), max(values))
            figures.append([label, *(_show(value, share) for value in shown), meaning])
    rewards, truths = _rewards(logged, config), _truths(rung, config, table)
    return {
        "rung": rung["name"],
        "logs": len(logged),
        "figures": figures,
        "rewards": [[label, f"{values[0]:.2f}", f"{values[-1]:.2f}", f"highest {max(values):.2f}"] for label, values, _ in rewards],
        "truths": [[f"{label}, held-out", cell["change"]["before"], cell["text"], _say(cell["change"])] for label, cell in truths],
        "verdict": _verdict(rewards, truths) if logged else "",
        "gate": rung["gate"] and {"words": say_gate(rung["gate"]), "rows": scoreboard.gate_table(rung["gate"])},
    }


def telling(rung: dict, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without the share of flat groups where a group is a single completion, and always flat."""
    alone = (rung["config"] or {}).get("num_generations") == 1
    return [{key: value for key, value in entry.items() if not (alone and key == "frac_reward_zero_std")} for entry in history]


def _say(change: dict) -> str:
    return change["text"] + ("" if change["apart"] or change["text"] == "no change" else ", overlapping")


def _show(value: float, share: bool) -> str:
    if share:
        return scoreboard.show_metric("share", {"value": value})
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _rewards(logged: list[dict], config: dict) -> list[tuple[str, list[float], bool]]:
    """Label, logged values, paid for or not: what was paid for in all, then function by function."""
    keys = {"reward": ("Reward, as paid", True)}
    specs = config.get("rewards") or []
    alone = sum(spec.get("weight", 1) != 0 for spec in specs) == 1  # the one that is paid for is the reward
    for spec in specs:
        name = str(spec.get("name") or spec.get("model")).rpartition("." if "name" in spec else "/")[2]
        weight = spec.get("weight", 1)
        if weight and alone:
            continue
        keys[f"rewards/{name}/mean"] = (name + (f", weight {weight:g}" if weight else ", not paid for"), bool(weight))
    found = [(label, [entry[key] for entry in logged if is_number(entry.get(key))], paid) for key, (label, paid) in keys.items()]
    return [(label, values, paid) for label, values, paid in found if values]


def _truths(rung: dict, config: dict, table: list[dict]) -> list[tuple[str, dict]]:
    """The held-out figures that this rung and the one before it have, that which the reward stands for first."""
    judged = any("model" in spec for spec in config.get("rewards") or [])  # by a reward model: liked, not right
    names = TRUTHS if judged else (*TRUTHS[1:], TRUTHS[0])
    rows = {row["name"]: row for row in table}
    found = [
        (rows[name]["label"], cell)
        for name in names
        if name in rows
        for cell in rows[name]["cells"]
        if cell["rung"] == rung["name"]
    ]
    return [(label, cell) for label, cell in found if cell["text"] and cell["change"]]


def trend(values: list[float]) -> int:
    """1, -1 or 0: the last quarter's mean above or below the first's by more than the values scatter within either."""
    quarter = max(1, len(values) // 4)
    first, last = values[:quarter], values[-quarter:]
    step = statistics.fmean(last) - statistics.fmean(first)
    return 0 if abs(step) <= max(statistics.pstdev(first), statistics.pstdev(last)) else 1 if step > 0 else -1


def _verdict(rewards: list, truths: list) -> str:
    """Reward and truth in one sentence or two, as far as they are known."""
    if not rewards or len(rewards[0][1]) < 2:
        return "No reward was logged twice: nothing can be said."
    paid = {1: "rose", 0: "stayed where it was", -1: "fell"}[trend(rewards[0][1])]
    told = f"The reward {paid}"
    for label, values in [(label, values) for label, values, paid in rewards if not paid]:
        told += f"; {label.partition(',')[0]}, which nobody paid for, went from {values[0]:.2f} to {values[-1]:.2f}"
        fell = max(values) - values[-1] > 0.1 * (max(values) - min(values)) and max(values) > values[0]
        told += f", after {max(values):.2f} at its highest" if fell else ""
    if not truths:
        return f"{told}. No held-out figure of this rung and of the one before it tells whether that is the truth."
    label, cell = truths[0]
    change = cell["change"]
    moved = f"{label} {change['before']} → {cell['text']}"
    if not change["apart"]:
        return f"{told}. On held-out items there is no clear change: {moved}, and the intervals overlap."
    if change["kind"] == "loss":
        warning = " What is paid for is not what is wanted: read the replies." if paid == "rose" else ""
        return f"{told}. On held-out items it got worse: {moved}.{warning}"
    return f"{told}. On held-out items it got better: {moved}."


def say_gate(gate: dict) -> str:
    """What the gate found before the first step, and whether there was anything to learn from."""
    share = {name: scoreboard.show_metric("share", line).partition(" (")[0] for name, line in gate["all"].items()}
    k = gate["k"]
    told = f"Before the first step the model was right in {share['pass_at_1']} of its tries at {gate['prompts']} prompts"
    told += f", and at least once in {k} at {share['pass_at_k']} of them. At {share['mixed']} some tries were better than others. "
    told += (
        "That is what GRPO learns from: there was something to learn."
        if gate["signal"]
        else "GRPO learns from nothing else: there was too little to learn from."
    )
    advice = "; ".join(gate.get("advice") or [])  # with a signal, that it may be of guesses
    return f"{told} {advice[:1].upper()}{advice[1:]}".rstrip()
