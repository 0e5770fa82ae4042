"""Which problems GRPO tries next: those that the model solves sometimes.

A group teaches in proportion to the variance of its outcomes, p (1 - p) for a problem solved with chance p (Bae et al. 2025,
arXiv:2504.03380, prove that the expected improvement is largest at 1/2). What is always or never solved rests, and is looked at
again later: the model has changed.
"""

import numpy as np
from groundup.order import finalise, mix

UNSEEN = -1.0
EVEN = 0.98  # solved, or not solved, as good as always
FIRST_LOOK = 0.5  # weight of a problem not tried yet, where 1 is one that is solved half the time


class Curriculum:
    """Chances of success, a running mean for each problem, and what is drawn by them. All of it is the same on every process.

    Args:
        tryable: which rows have an answer to be right; of the others, which are rehearsed, each draw has their share.
        seed: with the number of the draw and the chances so far, all that a draw depends on.
        rest: draws for which a problem that is always or never solved is left alone.
        memory: weight of the past in the running mean.
    """

    def __init__(self, tryable: list[bool], seed: int, rest: int = 20, memory: float = 0.5):
        self.tryable, self.seed, self.rest, self.memory = np.array(tryable, dtype=bool), seed, rest, memory
        self.chances = np.full(len(tryable), UNSEEN)
        self.tried = np.zeros(len(tryable), dtype=np.int64)  # the draw of its last try
        self.draws = 0

    def weights(self) -> np.ndarray:
        """How much each row is wanted now, 0 for what rests."""
        wanted = np.maximum(4 * self.chances * (1 - self.chances), 0.05)
        even = (self.chances >= EVEN) | (self.chances <= 1 - EVEN)
        rested = self.draws - self.tried >= self.rest
        wanted[even] = np.where(rested, FIRST_LOOK / 2, 0.0)[even]
        wanted[self.chances == UNSEEN] = FIRST_LOOK
        return wanted

    def draw(self, count: int) -> list[int]:
        """`count` rows, none twice unless there are fewer; counts as a draw.

        Weighted sampling without replacement: the largest u^(1 / weight) (Efraimidis & Spirakis 2006,
        doi:10.1016/j.ipl.2005.11.003), with what rests behind everything else, the longest rested first.
        """
        with np.errstate(over="ignore", divide="ignore"):
            key = mix(np.full(1, self.seed, np.uint64)) ^ mix(np.full(1, self.draws, np.uint64))
            noise = finalise(mix(np.arange(len(self.chances), dtype=np.uint64)) ^ mix(key))
            u = (noise >> np.uint64(11)).astype(np.float64) / 2**53 + 1e-18
            weights = self.weights()
            resting = -2.0 - self.tried / (self.draws + 1) + u * 1e-6
            order = np.argsort(-np.where(weights > 0, np.exp(np.log(u) / weights), resting), kind="stable")
            uniform = np.argsort(-u, kind="stable")
        self.draws += 1
        problems, others = order[self.tryable[order]], uniform[~self.tryable[uniform]]
        rehearsed = round(count * len(others) / len(self.chances)) if len(problems) else count
        chosen = [*np.resize(problems, count - rehearsed), *np.resize(others, rehearsed)]
        return [int(row) for row in chosen]

    def record(self, rows: list[int], passed: list[float]) -> None:
        """Shares of completions that passed; a row without an answer passes nothing."""
        for row, share in zip(rows, passed, strict=True):
            if self.tryable[row]:
                old = self.chances[row]
                self.chances[row] = share if old == UNSEEN else self.memory * old + (1 - self.memory) * share
                self.tried[row] = self.draws

    def shares(self) -> dict[str, float]:
        """Of the problems tried so far: solved always, never, and sometimes."""
        seen = self.chances[self.tryable & (self.chances != UNSEEN)]
        if not len(seen):
            return {}
        always, never = (seen >= EVEN).mean(), (seen <= 1 - EVEN).mean()
        return {"always": float(always), "never": float(never), "sometimes": float(1 - always - never)}

    def state_dict(self) -> dict:
        return {"draws": self.draws, "chances": self.chances.tolist(), "tried": self.tried.tolist()}

    def load_state_dict(self, state: dict) -> None:
        if len(state["chances"]) != len(self.chances):
            raise ValueError(f"the curriculum was of {len(state['chances'])} rows, and there are {len(self.chances)}")
        self.draws = state["draws"]
        self.chances, self.tried = np.array(state["chances"], dtype=np.float64), np.array(state["tried"], dtype=np.int64)
