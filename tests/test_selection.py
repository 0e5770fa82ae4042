"""What becomes of documents: duplicates, shares and held-out ones, on notes made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from groundup import selection
from groundup.corpus import NOTE
from groundup.errors import InputError
from groundup.selection import DROPPED, HELD_OUT, TRAIN, Choice, choose, mixed


def source(name="a", weight=None, held_out=False):
    return SimpleNamespace(args=SimpleNamespace(dataset=name), weight=weight, held_out=held_out)


@pytest.fixture
def noted(tmp_path):
    """Write notes (hash, size, source, dropped[, group]) of each part; the directory."""

    def noted(*parts):
        for part, rows in enumerate(parts):
            rows = [(row[0], row[4] if len(row) > 4 else row[0], *row[1:4]) for row in rows]
            (tmp_path / f"scan-{part:05d}.notes").write_bytes(np.array(rows, dtype=NOTE).tobytes())
        return tmp_path

    return noted


def made(directory, parts):
    return [list((directory / f"choice-{part:05d}.bytes").read_bytes()) for part in range(parts)]


@pytest.fixture
def many(noted):
    """Two sources of 3,000 documents in three parts, of 100 and 10 bytes on average."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64 - 1, (3, 2000), dtype=np.uint64)
    sizes = generator.integers(1, 200, (3, 2000)), generator.integers(1, 20, (3, 2000))
    rows = [[(int(h), int(sizes[n % 2][p][n]), n % 2, 0) for n, h in enumerate(hashes[p])] for p in range(3)]
    return noted(*rows), rows


# ---- Duplicates


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_of_equal_documents_the_first_source_keeps_its_own(noted, monkeypatch, at_once):
    monkeypatch.setattr(selection, "AT_ONCE", at_once)  # sorted in so many ranges
    low, middle, high = 5, 2**63, 2**64 - 1
    directory = noted(
        [(low, 1, 1, 0), (middle, 1, 1, 0), (low, 1, 1, 0)], [(low, 1, 0, 0), (high, 1, 1, 0)], [(high, 1, 1, 0), (7, 1, 0, 1)]
    )
    found = choose(directory, 3, [source("a"), source("b")], 0, 0, None)
    assert made(directory, 3) == [[DROPPED, TRAIN, DROPPED], [TRAIN, TRAIN], [DROPPED, DROPPED]]
    assert found["dropped"]["duplicate"] == [0, 3] and found["used"] == [[1, 1], [2, 2]]


def test_many_duplicates_against_a_set(noted):
    generator = np.random.default_rng(1)
    rows = [[(int(h), 1, 0, 0) for h in generator.integers(0, 500, 1000)] for _ in range(3)]
    directory = noted(*rows)
    choose(directory, 3, [source()], 0, 0, None)
    seen = set()
    for part, choices in enumerate(made(directory, 3)):
        for (key, *_), choice in zip(rows[part], choices, strict=True):
            assert (choice == DROPPED) == (key in seen)
            seen.add(key)


def test_document_that_was_dropped_is_no_first_one(noted):
    directory = noted([(1, 1, 0, 1), (1, 1, 0, 0)])
    choose(directory, 1, [source()], 0, 0, None)
    assert made(directory, 1) == [[DROPPED, TRAIN]]


def test_what_stands_in_a_held_out_source_is_not_trained_on(noted):
    directory = noted([(1, 1, 0, 0), (2, 1, 0, 0)], [(1, 1, 1, 0)])
    found = choose(directory, 2, [source("a"), source("b", held_out=True)], 0, None, None)
    assert made(directory, 2) == [[DROPPED, TRAIN], [HELD_OUT]]
    assert found["held_out"] == [[0, 0], [1, 1]] and found["dropped"]["duplicate"] == [1, 0]


def test_near_duplicates_keep_the_first_and_all_that_is_held_out(noted):
    directory = noted([(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 0, 0), (4, 1, 0, 0)], [(5, 1, 1, 0), (6, 1, 1, 0), (7, 1, 0, 0)])
    clusters = [np.array([[0, 9], [1, 9], [2, 8]], "<u4"), np.array([[0, 8], [1, 8]], "<u4")]  # numbers skip what scan dropped
    found = choose(directory, 2, [source("a"), source("b", held_out=True)], 0, None, clusters)
    assert made(directory, 2) == [[TRAIN, DROPPED, DROPPED, DROPPED], [HELD_OUT, HELD_OUT, TRAIN]]
    assert found["dropped"]["near duplicate"] == [2, 0]


# ---- Shares


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (1, 30)])
def test_shares_are_of_bytes_and_the_scarcest_source_is_used_up(many, weights):
    directory, rows = many
    found = choose(directory, 3, [source("a", weights[0]), source("b", weights[1])], 0, 0, None)
    total = [sum(row[1] for part in rows for row in part if row[2] == n) for n in range(2)]
    used = [size for _, size in found["used"]]
    scarce = min(range(2), key=lambda n: total[n] / weights[n])
    assert used[scarce] == total[scarce]
    target = total[scarce] / weights[scarce] * weights[1 - scarce]
    assert target - 200 < used[1 - scarce] <= target  # one document more would be too much
    assert [kept + left for (kept, _), left in zip(found["used"], found["dropped"]["beyond its share"], strict=True)] == [
        3000,
        3000,
    ]


def test_what_a_mixture_leaves_out_depends_on_the_seed_and_not_on_the_parts(many, noted):
    directory, rows = many
    sources = [source("a", 0.5), source("b", 0.5)]

    def used(parts):
        choices = made(directory, len(parts))
        return {row[0]: c for part, cs in zip(parts, choices, strict=True) for row, c in zip(part, cs, strict=True)}

    choose(directory, 3, sources, 0, 20, None)
    first = used(rows)
    choose(directory, 3, sources, 1, 20, None)
    assert used(rows) != first
    together = sum(rows, [])
    choose(noted(together), 1, sources, 0, 20, None)
    assert used([together]) == first


def test_source_of_little_weight_keeps_one_document(many):
    directory, _ = many
    assert choose(directory, 3, [source("a", 1e9), source("b", 1e-9)], 0, 0, None)["used"][1][0] == 1


def test_mixture_with_a_source_that_is_gone(noted):
    directory = noted([(1, 1, 0, 0), (2, 1, 1, 1)])
    with pytest.raises(InputError, match="nothing is left of `b`"):
        choose(directory, 1, [source("a", 0.5), source("b", 0.5)], 0, 0, None)


# ---- Held out


def test_as_many_are_held_out_as_asked(many):
    directory, rows = many
    found = choose(directory, 3, [source("a"), source("b")], 0, 137, None)
    assert sum(n for n, _ in found["held_out"]) == 137 and sum(n for n, _ in found["used"]) == 6000 - 137
    assert all(40 < n < 97 for n, _ in found["held_out"])  # from both sources
    assert [part.count(HELD_OUT) for part in made(directory, 3)] != [137, 0, 0]


@pytest.mark.parametrize(("documents", "held_out"), [(1, 0), (2, 1), (150, 1), (1000, 5)])
def test_by_itself_one_in_two_hundred_is_held_out(noted, documents, held_out):
    directory = noted([(int(mixed(np.array([n], np.uint64), 0, "test")[0]), 1, 0, 0) for n in range(documents)])
    assert choose(directory, 1, [source()], 0, None, None)["held_out"][0][0] == held_out


def test_a_group_is_held_out_whole(noted):
    directory = noted([(n, 1, 0, 0, n // 5) for n in range(100)])
    choose(directory, 1, [source()], 0, 7, None)
    (choices,) = made(directory, 1)
    groups = [set(choices[start : start + 5]) for start in range(0, 100, 5)]
    assert all(len(group) == 1 for group in groups) and sum(group == {HELD_OUT} for group in groups) == 1  # two would be ten


def test_one_group_cannot_be_split(noted):
    directory = noted([(n, 1, 0, 0, 1) for n in range(100)])
    with pytest.raises(InputError, match="`held_out_documents: 7`, and every row .* is cut into more"):
        choose(directory, 1, [source()], 0, 7, None)
    assert choose(directory, 1, [source()], 0, None, None)["held_out"] == [[0, 0]]  # not asked for


def test_large_groups_leave_room_for_small_ones(noted):
    directory = noted([(n, 1, 0, 0, 1 if n < 3000 else n) for n in range(3100)])
    for seed in range(5):
        assert choose(directory, 1, [source()], seed, 10, None)["held_out"][0][0] == 10


def test_too_many_held_out(noted):
    with pytest.raises(InputError, match="`held_out_documents: 3` of 4 documents"):
        choose(noted([(n, 1, 0, 0) for n in range(4)]), 1, [source()], 0, 3, None)


def test_nothing_left(noted):
    with pytest.raises(InputError, match=r"no document is left: 2 documents -> 0 \(dropped: 2\)"):
        choose(noted([(1, 1, 0, 1), (2, 1, 0, 1)]), 1, [source()], 0, 0, None)


def test_mixed_numbers_are_even_and_differ_by_purpose():
    keys = np.arange(100_000, dtype=np.uint64)
    first, second = mixed(keys, 0, "mixture"), mixed(keys, 0, "held out")
    assert len(np.unique(first)) == 100_000 and not np.any(first == second)
    assert abs((first >> np.uint64(63)).mean() - 0.5) < 0.01
    assert abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1]) < 0.02


def test_choice_in_the_making_has_no_name(noted):
    directory = noted([(1, 1, 0, 0)])
    Choice(directory, 1, [source()], 0)
    assert not (directory / "choice-00000.bytes").exists()
