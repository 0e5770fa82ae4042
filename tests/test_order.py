import itertools
import math
from collections import Counter

import numpy as np
import pytest
from groundup.order import Order


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 1000, 4097])
@pytest.mark.parametrize("epoch", [0, 1, 10**6])
def test_an_epoch_holds_every_row_once(rows, epoch):
    found = Order(rows, 3)[np.arange(epoch * rows, (epoch + 1) * rows)]
    assert sorted(found.tolist()) == list(range(rows))


def test_a_million_rows_by_sampling():
    """No row comes twice among many, and they are spread over all."""
    rows, order = 2**20 + 1, Order(2**20 + 1, 0)
    found = order[np.arange(rows, rows + 200_000)]
    assert len(np.unique(found)) == 200_000 and found.min() >= 0 and found.max() < rows
    tenths = np.bincount(found * 10 // rows, minlength=10)
    assert ((tenths - 20_000) ** 2 / 20_000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01


def test_one_position_is_that_of_the_array():
    order = Order(100, 5)
    positions = np.array([[0, 99, 100], [250, 7, 10**15]])
    found = order[positions]
    assert found.shape == positions.shape and found.dtype == np.int64
    for index in np.ndindex(positions.shape):
        one = order[int(positions[index])]
        assert type(one) is int and one == found[index]


def test_epochs_and_seeds_differ():
    orders = [tuple(Order(50, seed)[np.arange(50 * epoch, 50 * epoch + 50)]) for seed in range(20) for epoch in range(20)]
    assert len(set(orders)) == 400
    # nor is one the other shifted or read backwards, as with a key that is only added
    for first, second in itertools.pairwise(orders):
        assert sum(a == b for a, b in zip(first, second, strict=True)) < 12


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
@pytest.mark.parametrize("key", ["seed", "epoch"])
def test_all_orders_are_about_as_frequent(rows, key):
    trials, kinds = 4000, math.factorial(rows)
    if key == "seed":
        orders = [tuple(Order(rows, seed)[np.arange(rows)]) for seed in range(trials)]
    else:
        orders = map(tuple, Order(rows, 0)[np.arange(trials * rows)].reshape(trials, rows))
    counts = Counter(orders)
    chi_square = sum((count - trials / kinds) ** 2 for count in counts.values()) / (trials / kinds)
    chi_square += (kinds - len(counts)) * trials / kinds
    assert chi_square < {2: 10.8, 6: 20.5, 24: 49.7, 120: 173.6}[kinds]  # p = 0.001


def test_a_row_is_anywhere_in_the_epochs():
    found = Order(100, 1)[np.arange(0, 100 * 20_000, 100)]  # the first of each epoch
    counts = np.bincount(found, minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 148.2  # 99 degrees of freedom, p = 0.001


def test_the_order_never_changes():
    """Runs that are under way go on by it: a change here is a change of the format, and of every result."""
    assert Order(10, 0)[np.arange(20)].tolist() == [3, 8, 2, 6, 1, 4, 0, 7, 5, 9, 1, 5, 6, 3, 8, 4, 2, 7, 9, 0]
    assert Order(10**6, 0)[np.arange(3) + 10**12].tolist() == [392607, 981258, 942346]
    assert Order(1, 7)[123] == 0
