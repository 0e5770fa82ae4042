"""How sure a score is: intervals for shares and means, and pass@k."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share: honest for few items and at 0 or n of n; (0, 1) for none."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The ends are exact at 0 and n successes; arithmetic would leave 1e-17.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half


def bootstrap(
    values: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[float, float]:
    """95 % percentile interval for the mean of `values`, or for sum(values) / sum(weights).

    With `clusters` (a label for each value) whole clusters are resampled: five questions about one fact are not five
    independent observations.
    """
    units = _units(clusters, values, [1.0] * len(values) if weights is None else weights)
    return _percentiles(units, lambda total, mass: total / mass, resamples, seed)


def _units(clusters: Sequence | None, *columns: Sequence[float]) -> list[list[float]]:
    """What is drawn: the sums of each column, a row a cluster; a value alone where there are no `clusters`."""
    sums: dict = {}
    for label, *row in zip(range(len(columns[0])) if clusters is None else clusters, *columns, strict=True):
        sums[label] = [total + float(value) for total, value in zip(sums.get(label, [0.0] * len(row)), row, strict=True)]
    if not sums:
        raise ValueError("no values")
    return list(sums.values())


def _percentiles(units: list[list[float]], statistic: Callable[..., float], resamples: int, seed: int) -> tuple[float, float]:
    """The middle 95 % of `statistic(*sums of the columns)` over resampled units."""
    columns, rows = list(zip(*units, strict=True)), range(len(units))
    generator, found = random.Random(seed), []
    for _ in range(resamples):
        drawn = generator.choices(rows, k=len(rows))
        found.append(statistic(*(sum(map(column.__getitem__, drawn)) for column in columns)))
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return low, high


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples is right, unbiased, from n samples of which c were (Chen et al. 2021, eq. 1)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def estimate(values: Sequence[float], clusters: Sequence | None = None, weights: Sequence[float] | None = None) -> dict[str, float]:
    """The mean as {"value", "low", "high", "n"}: Wilson for zeros and ones, else (and for clusters) bootstrap.

    With `weights` it is the ratio sum(values) / sum(weights).
    """
    if not len(values):
        raise ValueError("no values")
    mean, different = sum(values) / (len(values) if weights is None else sum(weights)), set(values)
    binary = different <= {0, 1} and weights is None
    if binary and clusters is None:
        low, high = wilson(int(sum(values)), len(values))
    elif binary and len(different) == 1:  # resampling equal values says (1, 1): each cluster is one observation
        low, high = wilson(int(mean) * len(set(clusters)), len(set(clusters)))
    else:
        low, high = bootstrap(values, clusters=clusters, weights=weights)
    return {"value": mean, "low": low, "high": high, "n": len(values)}


# Two models on the same items ----------------------------------------------------------------------------------------


def combine(a: dict[str, float], b: dict[str, float], correlation: float = 0.0) -> tuple[float, float]:
    """95 % interval for a - b of two estimates, from their own ("square and add": Newcombe 1998, Statistics in Medicine 17, 2635).

    With Wilson's intervals and the correlation of zeros and ones over the same items it is Newcombe's method 10 for paired shares,
    without one his method 10 for independent ones, and for other estimates MOVER (Zou and Donner 2008).
    """

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(up * up - 2 * correlation * up * down + down * down, 0.0))

    middle = a["value"] - b["value"]
    return (
        middle - reach(a["value"] - a["low"], b["high"] - b["value"]),
        middle + reach(a["high"] - a["value"], b["value"] - b["low"]),
    )


def difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence | None = None,
    weights: tuple[Sequence[float], Sequence[float]] | None = None,
) -> dict[str, float]:
    """Mean of a less that of b over the same items, paired, as {"value", "low", "high", "n"}.

    Zeros and ones by Newcombe's interval, since few items on which two models differ say less than their bootstrap does; all
    else, and clusters, by bootstrap of items, unless these are shares of which all are equal. `weights` are a's and b's where the
    means are ratios of sums.
    """
    units = _units(clusters, a, weights[0] if weights else [1.0] * len(a), b, weights[1] if weights else [1.0] * len(b))
    sums = [sum(column) for column in zip(*units, strict=True)]
    value = _apart(*sums)
    values, n = {*a, *b}, len(units)
    equal = values <= {0, 0.5, 1} and len({tuple(unit) for unit in units}) == 1
    binary = values <= {0, 1} and clusters is None
    if (equal or binary) and not weights:
        both = [{"value": total / mass} for total, mass in (sums[:2], sums[2:])]
        for share in both:
            share["low"], share["high"] = wilson(round(share["value"] * n), n)
        low, high = combine(*both, correlation=_correlation(a, b) if binary else 0.0)
    else:
        low, high = _percentiles(units, _apart, 1000, 0)
    return {"value": value, "low": low, "high": high, "n": len(a)}


def _apart(a: float, of_a: float, b: float, of_b: float) -> float:
    return a / of_a - b / of_b


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Phi of zeros and ones, with Newcombe's correction for continuity where it is above 0; 0 where either is constant."""
    n, both, of_a, of_b = len(a), sum(x * y for x, y in zip(a, b, strict=True)), sum(a), sum(b)
    margins = of_a * (n - of_a) * of_b * (n - of_b)
    if not margins:
        return 0.0
    product = both * (n - of_a - of_b + both) - (of_a - both) * (of_b - both)
    return (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(margins)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> tuple[int, int, float]:
    """Of zeros and ones: items on which only a has a 1, only b, and McNemar's exact two-sided p."""
    only_a, only_b = (sum(x > y for x, y in zip(one, other, strict=True)) for one, other in ((a, b), (b, a)))
    n, ways, tail = only_a + only_b, 1, 1
    for i in range(min(only_a, only_b)):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return only_a, only_b, min(1.0, 2 * tail / 2**n)


def chance(found: dict[str, float]) -> float:
    """Two-sided p of a difference of 0, from its 95 % interval: its end towards 0 is 1.96 standard errors away."""
    reach = found["value"] - found["low"] if found["value"] > 0 else found["high"] - found["value"]
    if not reach:
        return float(found["value"] == 0)
    return 2 * (1 - NormalDist().cdf(NormalDist().inv_cdf(0.975) * abs(found["value"]) / reach))


def holm(chances: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several p stay below the level when it is to hold for all together (Holm 1979)."""
    kept, order = [False] * len(chances), sorted(range(len(chances)), key=chances.__getitem__)
    for rank, i in enumerate(order):
        if chances[i] > level / (len(chances) - rank):
            break
        kept[i] = True
    return kept
