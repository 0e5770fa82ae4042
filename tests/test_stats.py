"""Intervals against published numbers, numbers worked by hand, and simulated coverage."""

import random

import pytest
from groundup.stats import bootstrap, difference, estimate, pass_at_k, wilson


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
