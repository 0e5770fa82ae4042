"""How sure a score is: intervals for shares and means, and pass@k."""

import math
import random
from collections.abc import Sequence
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
    weights = [1.0] * len(values) if weights is None else weights
    labels = range(len(values)) if clusters is None else clusters
    sums: dict = {}
    for value, weight, label in zip(values, weights, labels, strict=True):
        total, mass = sums.get(label, (0.0, 0.0))
        sums[label] = total + value, mass + weight
    if not sums:
        raise ValueError("no values")
    totals, masses = zip(*sums.values(), strict=True)
    generator, units = random.Random(seed), range(len(totals))
    means = []
    for _ in range(resamples):
        drawn = generator.choices(units, k=len(totals))
        means.append(sum(map(totals.__getitem__, drawn)) / sum(map(masses.__getitem__, drawn)))
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples is right, unbiased, from n samples of which c were (Chen et al. 2021, eq. 1)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def estimate(values: Sequence[float], clusters: Sequence | None = None) -> dict[str, float]:
    """The mean as {"value", "low", "high", "n"}: Wilson for zeros and ones, else (and for clusters) bootstrap."""
    if not len(values):
        raise ValueError("no values")
    mean, different = sum(values) / len(values), set(values)
    binary = different <= {0, 1}
    if binary and clusters is None:
        low, high = wilson(int(sum(values)), len(values))
    elif binary and len(different) == 1:  # resampling equal values says (1, 1): each cluster is one observation
        low, high = wilson(int(mean) * len(set(clusters)), len(set(clusters)))
    else:
        low, high = bootstrap(values, clusters=clusters)
    return {"value": mean, "low": low, "high": high, "n": len(values)}


def difference(a: Sequence[float], b: Sequence[float], clusters: Sequence | None = None) -> dict[str, float]:
    """Mean of a - b over the same items, as {"value", "low", "high", "n"}: paired bootstrap."""
    values = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    low, high = bootstrap(values, clusters=clusters)
    return {"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)}
