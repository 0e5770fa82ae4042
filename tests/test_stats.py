"""Intervals against published numbers, numbers worked by hand, and simulated coverage."""

import random

import pytest
from groundup.stats import bootstrap, chance, combine, difference, estimate, holm, mcnemar, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # z = 1.96: 0 of 1 reaches z^2 / (1 + z^2) = 3.8415 / 4.8415
        (0, 1, 0.0, 0.7935),
        (1, 1, 0.2065, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_nonsense():
    with pytest.raises(ValueError):
        wilson(3, 2)
    assert wilson(5, 10, level=0.99)[0] < wilson(5, 10)[0]


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (5, 2, 1, 0.4),
        (5, 2, 3, 0.9),  # 1 - C(3,3) / C(5,3)
        (5, 2, 4, 1.0),  # four of five cannot all be among the three wrong ones
        (10, 0, 10, 0.0),
        (10, 10, 1, 1.0),
        (4, 1, 2, 0.5),  # 1 - C(3,2) / C(4,2)
    ],
)
def test_pass_at_k(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value)


def test_pass_at_k_refuses_more_than_was_sampled():
    with pytest.raises(ValueError):
        pass_at_k(2, 1, 3)


def test_bootstrap_agrees_with_the_normal_interval():
    generator = random.Random(1)
    values = [generator.gauss(3, 2) for _ in range(400)]
    mean = sum(values) / 400
    error = (sum((v - mean) ** 2 for v in values) / 400 / 400) ** 0.5
    low, high = bootstrap(values, resamples=2000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.03)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.03)
    assert bootstrap(values, resamples=2000) == (low, high)  # the seed decides
    assert bootstrap(values, resamples=2000, seed=1) != (low, high)


def test_bootstrap_of_one_value_and_of_none():
    assert bootstrap([2.5]) == (2.5, 2.5)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_ten_copies_of_each_value_are_no_evidence():
    values = [random.Random(i).random() for i in range(40)]
    low, high = bootstrap(values)
    copied = [v for v in values for _ in range(10)]
    facts = [i for i in range(40) for _ in range(10)]
    assert bootstrap(copied, clusters=facts) == pytest.approx((low, high))
    narrow = bootstrap(copied)
    assert narrow[1] - narrow[0] < (high - low) / 2


def test_weights_make_a_ratio_of_sums():
    # every document has two nats a byte, whatever its length
    assert bootstrap([2, 20, 200], weights=[1, 10, 100]) == pytest.approx((2.0, 2.0))
    assert estimate([2, 20, 200], weights=[1, 10, 100]) == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0, "n": 3})


def test_bootstrap_covers():
    covered = 0
    for trial in range(100):
        generator = random.Random(1000 + trial)
        low, high = bootstrap([generator.random() for _ in range(50)], resamples=200)
        covered += low <= 0.5 <= high
    assert 88 <= covered <= 99


def test_estimate():
    assert estimate([1, 0, 1, 1]) == {
        "value": 0.75,
        "low": pytest.approx(0.3006, abs=5e-5),
        "high": pytest.approx(0.9544, abs=5e-5),
        "n": 4,
    }
    assert estimate([True] * 20) == pytest.approx({"value": 1.0, "low": 1 - 0.1611, "high": 1.0, "n": 20}, abs=5e-5)
    mean = estimate([0.5, 1.5])
    assert (mean["value"], mean["n"]) == (1.0, 2) and mean["low"] >= 0.5 and mean["high"] <= 1.5
    # four right answers about two facts are two observations
    assert estimate([1] * 4, clusters=["a", "a", "b", "b"])["low"] == pytest.approx(wilson(2, 2)[0])
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_difference_is_paired():
    base = [random.Random(i).random() for i in range(60)]
    better = [v + 0.1 for v in base]
    assert difference(better, base) == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1, "n": 60})
    noisy = difference(base, base[::-1])
    assert noisy["low"] < 0 < noisy["high"]
    with pytest.raises(ValueError):
        difference([1], [1, 2])


def marks(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[int], list[int]]:
    return [1] * (both + only_a) + [0] * (only_b + neither), [1] * both + [0] * only_a + [1] * only_b + [0] * neither


def test_difference_of_shares_on_the_same_items():
    # Newcombe (1998), Statistics in Medicine 17, 2635, method 10
    found = difference(*marks(36, 12, 2, 0))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    # two models that agree on every item: few items leave room for a difference
    same = difference(*marks(150, 0, 0, 50))
    assert same["low"] == pytest.approx(-same["high"]) and same["low"] < -0.01


def test_difference_of_shares_on_different_items():
    # Newcombe (1998), Statistics in Medicine 17, 873, method 10: 56/70 and 48/80
    a, b = (estimate([1] * k + [0] * (n - k)) for k, n in ((56, 70), (48, 80)))
    assert combine(a, b) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_difference_of_ratios_and_of_clusters():
    bits, size = [2.0, 30.0, 100.0], [1, 10, 100]
    found = difference([b + s for b, s in zip(bits, size, strict=True)], bits, weights=(size, size))
    assert found == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0, "n": 3})  # one bit a byte more, in each document
    assert difference([8, 8], [8, 8], weights=([2, 2], [4, 4]))["value"] == 2.0  # other tokens, other numbers of them
    each = [random.Random(i).random() for i in range(40)]
    facts = [i for i in range(40) for _ in range(10)]
    many = [v for v in each for _ in range(10)]
    wide, narrow = difference(many, [0.5] * 400, clusters=facts), difference(many, [0.5] * 400)
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    # eight tries each at two problems: two observations
    tries = difference([1] * 16, [0] * 16, clusters=[0] * 8 + [1] * 8)
    assert tries["value"] == 1 and tries["low"] < 0.2
    assert difference([0.5] * 20, [0] * 20)["low"] < 0.3  # ties, without exception


def test_mcnemar():
    # Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91: 1 and 7 discordant, exact p 0.0703
    assert mcnemar(*marks(1, 1, 7, 12)) == (1, 7, pytest.approx(0.0703, abs=5e-5))
    assert mcnemar(*marks(3, 0, 0, 4)) == (0, 0, 1.0) and mcnemar(*marks(0, 2, 2, 0))[2] == 1.0
    assert mcnemar(*marks(0, 5, 0, 0))[2] == 2 / 32


def test_chance_of_an_interval():
    assert chance({"value": 0.5, "low": 0.0, "high": 9.0}) == pytest.approx(0.05, abs=1e-4)  # it just reaches 0
    assert chance({"value": -0.5, "low": -9.0, "high": -0.25}) < 0.001
    assert chance({"value": 0.0, "low": 0.0, "high": 0.0}) == 1 and chance({"value": 1.0, "low": 1.0, "high": 1.0}) == 0


def test_holm():
    # 0.01 <= 0.05 / 4, 0.015 <= 0.05 / 3, 0.03 > 0.05 / 2: the rest go with it
    assert holm([0.03, 0.01, 0.04, 0.015]) == [False, True, False, True]
    assert holm([0.02, 0.03]) == [True, True] and holm([]) == []


def simulated(trial: int, n: int = 120, gain: float = 0.05) -> tuple[list[float], list[float]]:
    """What two models got on the same items, of which some are hard and some easy; the second is right by `gain` more often."""
    generator = random.Random(f"trial {trial}")  # of a text: small numbers make seeds that are alike
    hard = [generator.random() * (1 - gain) for _ in range(n)]
    return [float(generator.random() < h) for h in hard], [float(generator.random() < h + gain) for h in hard]


def test_paired_interval_of_shares_covers_and_is_narrower():
    covered, paired, unpaired = 0, 0.0, 0.0
    for trial in range(1000):
        a, b = simulated(trial)
        found, (low, high) = difference(b, a), combine(estimate(b), estimate(a))
        covered += found["low"] <= 0.05 <= found["high"]
        paired, unpaired = paired + found["high"] - found["low"], unpaired + high - low
    assert 930 <= covered <= 975  # of 1,000, with a standard error of 7
    assert paired < 0.9 * unpaired


def test_paired_interval_covers_where_two_models_hardly_differ():
    """A bootstrap of the differences, which says nothing where there are none, covers in three of four such trials."""
    covered = 0
    for trial in range(300):
        generator = random.Random(f"trial {trial}")
        a = [float(generator.random() < 0.5) for _ in range(150)]
        b = [1.0 if generator.random() < 0.02 else x for x in a]
        found = difference(b, a)
        covered += found["low"] <= 0.01 <= found["high"]
    assert covered >= 280


@pytest.mark.parametrize("kind", ["ratio", "clusters"])
def test_paired_bootstrap_covers_and_is_narrower(kind):
    """Bits per byte over documents of all lengths; tries at problems, eight each."""
    covered, paired, unpaired, trials = 0, 0.0, 0.0, 60
    for trial in range(trials):
        generator = random.Random(f"trial {trial}")
        if kind == "ratio":
            weights = [generator.randint(20, 400) for _ in range(60)]
            a = [w * generator.gauss(1, 0.2) for w in weights]
            b = [x + w * generator.gauss(0.03, 0.05) for x, w in zip(a, weights, strict=True)]
            how, alone, true = {"weights": (weights, weights)}, {"weights": weights}, 0.03
        else:
            problems = [i for i in range(60) for _ in range(8)]
            share = [generator.random() * 0.9 for _ in range(60)]
            a, b = ([float(generator.random() < share[i] + gain) for i in problems] for gain in (0, 0.1))
            how, alone, true = {"clusters": problems}, {"clusters": problems}, 0.1
        found, (low, high) = difference(b, a, **how), combine(estimate(b, **alone), estimate(a, **alone))
        covered += found["low"] <= true <= found["high"]
        paired, unpaired = paired + found["high"] - found["low"], unpaired + high - low
    assert 53 <= covered <= 60  # 57 are expected, with a standard error of 1.7
    assert paired < 0.7 * unpaired
