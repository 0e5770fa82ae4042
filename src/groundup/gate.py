"""Before GRPO: does the model solve some problems and not others? There is nothing else for it to learn from.

A group whose completions all pass or all fail has no advantage. The loudest complaint about GRPO, a reward that stays flat, is most
often a run that could have been told so before its first step.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from groundup import record, scoreboard, stats
from groundup.configs import GateArguments
from groundup.errors import InputError
from groundup.grpo import PASS, GRPOTrainer
from transformers import TrainerCallback

TOO_LONG, TOO_SELDOM_IN_FORMAT = 0.5, 0.5


@dataclass
class Tried:
    """One prompt's completions: the first reward of each, was it in the format (None: no such reward), was it cut off.

    `by_chance` is the first reward by another prompt's answer, NaN where there is none: what guessing earns.
    """

    difficulty: Any
    rewards: list[float]
    in_format: list[bool] | None
    cut_off: list[bool]
    by_chance: list[float] = field(default_factory=list)

    @property
    def passed(self) -> list[bool]:
        return [reward > PASS for reward in self.rewards]

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ: some pass and some fail, or, of a reward that knows more than that, some are better."""
        known = [reward for reward in self.rewards if not math.isnan(reward)]
        return bool(known) and max(known) - min(known) > 1e-6


def try_out(trainer: GRPOTrainer, prompts: int) -> list[Tried]:
    """What the trainer's own rollouts on its first `prompts` prompts come to; on every process the same.

    The first reward says what passes, and a reward called `answer_format`, if there is one, what is in the format. Prompts of which
    the first reward says nothing (rehearsed ones) are not tried. Random numbers and logs are left as they were.
    """
    rows, k = trainer.train_dataset, trainer.num_generations
    asked = (
        [i for i, answer in enumerate(rows["answer"]) if answer is not None] if "answer" in rows.column_names else range(len(rows))
    )
    generator = torch.Generator().manual_seed(trainer.args.seed)
    chosen = [asked[i] for i in torch.randperm(len(asked), generator=generator)[:prompts].tolist()]
    at_once = trainer.args.generation_batch_size // k
    chosen = list(itertools.islice(itertools.cycle(chosen), -(-len(chosen) // at_once) * at_once))  # the last batch filled up
    size = trainer.args.generation_batch_size // trainer.accelerator.num_processes
    start = trainer.accelerator.process_index * size
    names = list(trainer.reward_func_names)
    form = names.index("answer_format") if "answer_format" in names else None
    tried: list[Tried] = []
    with trainer.unnoticed():
        for first in range(0, len(chosen), at_once):
            batch = [rows[i] for i in chosen[first : first + at_once]]
            repeated = [row for row in batch for _ in range(k)]
            rewards, ended, by_chance = trainer.dry_rollout(repeated[start : start + size])
            for n, row in enumerate(batch):
                mine = slice(n * k, n * k + k)
                tried.append(
                    Tried(
                        row.get("difficulty"),
                        rewards[mine, 0].tolist(),
                        None if form is None else (rewards[mine, form] > PASS).tolist(),
                        (~ended[mine]).tolist(),
                        by_chance[mine].tolist(),
                    )
                )
    return tried[: min(prompts, len(asked))]


def summarise(tried: Sequence[Tried]) -> dict[str, Any]:
    """Shares with 95 % intervals, in all and by difficulty, and whether there is a signal to learn from."""

    def share(lists: list[list[bool]]) -> dict[str, Any]:  # completions to one prompt are not independent
        labels = [n for n, values in enumerate(lists) for _ in values]
        return stats.estimate([float(value) for values in lists for value in values], clusters=labels)

    def line(some: Sequence[Tried]) -> dict[str, Any]:
        found = {
            "pass_at_1": share([one.passed for one in some]),
            "pass_at_k": stats.estimate([float(any(one.passed)) for one in some]),
            "mixed": stats.estimate([float(one.mixed) for one in some]),
            "cut_off": share([one.cut_off for one in some]),
        }
        if some[0].in_format is not None:
            found["in_format"] = share([one.in_format or [] for one in some])
        for_others = [[reward > PASS for reward in one.by_chance if not math.isnan(reward)] for one in some]
        if reads_answers and any(for_others):
            found["by_chance"] = share(for_others)
        return found

    pairs = [pair for one in tried for pair in zip(one.rewards, one.by_chance, strict=False) if not math.isnan(pair[1])]
    reads_answers = any((mine > PASS) != (other > PASS) for mine, other in pairs)  # a reward for length, say, does not
    levels = sorted({one.difficulty for one in tried if one.difficulty is not None}, key=lambda level: (str(type(level)), level))
    return {
        "prompts": len(tried),
        "k": len(tried[0].passed),
        "all": line(tried),
        "by_difficulty": {str(level): line([one for one in tried if one.difficulty == level]) for level in levels},
    }


def advice(found: dict[str, Any]) -> list[str]:
    """What to do about a reward that would stay flat, the likeliest cause first."""
    line, said = found["all"], guessed(found)
    share = {name: line[name]["value"] for name in line}
    if share["cut_off"] > TOO_LONG:
        said.append(
            f"{share['cut_off']:.0%} of completions are cut off: raise `max_completion_length`, or teach shorter ones (SFT)"
        )
    if share.get("in_format", 1.0) < TOO_SELDOM_IN_FORMAT:
        said.append(f"only {share['in_format']:.0%} state one final answer: teach the format (SFT), or reward `answer_format`")
    if share["pass_at_1"] > 0.5:
        said.append("nearly all is solved: take harder problems")
    else:
        said.append("nearly nothing is solved: take easier problems, show solutions first (SFT), or raise `num_generations`")
    return said


def guessed(found: dict[str, Any]) -> list[str]:
    """What to say where completions are no better for the prompt they answer than for another."""
    mine, others = found["all"]["pass_at_1"], found["all"].get("by_chance")
    if others is None or mine["low"] > others["value"]:
        return []
    what = f"what passes may be guessed: {mine['value']:.1%} is right, and {others['value']:.1%} would be for another prompt"
    return [f"{what}; show solutions first (SFT), or take problems with more different answers"]


class Gate(TrainerCallback):
    """Tries the model once the trainer stands ready, keeps the table, and stops a run without a signal.

    Raises:
        InputError: fewer than `gate_min_mixed` of the prompts have some completions that pass and some that fail, and no `force`.
    """

    def __init__(self, trainer: GRPOTrainer, args: GateArguments, directory: Path):
        self.trainer, self.args, self.directory = trainer, args, directory

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step or not self.args.gate_prompts:
            return
        tried = try_out(self.trainer, self.args.gate_prompts)
        if not tried:
            return
        found = summarise(tried)
        signal = found["all"]["mixed"]["value"] >= self.args.gate_min_mixed
        found |= {"signal": signal, "advice": guessed(found) if signal else advice(found)}
        if state.is_world_process_zero:
            record.write_json(self.directory / record.GATE, found)
            for row in scoreboard.gate_table(found):
                print("gate: " + "".join(cell.rjust(16) for cell in row), flush=True)
        if signal:
            if state.is_world_process_zero:
                print("".join(f"gate: {line}\n" for line in found["advice"]), end="", flush=True)
            return
        what = f"{found['all']['mixed']['value']:.0%} of {found['prompts']} prompts have completions that pass and others that fail"
        if not self.args.force:
            fix = "; ".join(found["advice"]) + "; `--force true` trains all the same"
            raise InputError(f"only {what}: GRPO would have nothing to learn from", "the first of `rewards`", fix)
        if state.is_world_process_zero:
            print(f"gate: only {what}, and `force` is on", flush=True)
