import io

import pytest
from groundup.words import (
    funnel,
    markdown,
    markdown_cell,
    show_bytes,
    show_clock,
    show_count,
    show_processors,
    show_seconds,
    visible,
)


def test_counts():
    shown = [show_count(count) for count in (None, 7, 999, 1234, 1_234_567, 2e9, 3.5e12, float("nan"), True)]
    assert shown == ["", "7", "999", "1.23 k", "1.23 M", "2 B", "3.5 T", "", ""]


def test_sizes():
    assert show_bytes(0) == "0 MiB" and show_bytes(3 * 2**18) == "768 KiB"
    assert show_bytes(700 * 2**20) == "700 MiB" and show_bytes(3 * 2**29) == "1.5 GiB"


def test_times():
    assert [show_seconds(s) for s in (None, 0.4, 89, 90, 5399, 5400)] == ["", "0 s", "89 s", "1.5 min", "90.0 min", "1.5 h"]


def test_processors():
    found = show_processors({"cpu": "A CPU", "cores": 2, "gpus": ["H100", "L4", "H100"]})
    assert found == ["2 x H100", "1 x L4", "A CPU, 2 cores"] and show_processors({}) == []


def test_a_table_keeps_its_form_whatever_stands_in_it():
    assert markdown_cell("a|b\n <script>&lt;") == "a\\|b &lt;script>&amp;lt;" and markdown_cell(None) == ""
    assert markdown_cell("![i](http://x/i.png) [a] (b)") == "![i]\\(http://x/i.png) [a] (b)"  # what a model says loads nothing
    assert markdown(("A", ""), [("x|y", None)]).splitlines() == ["| A |  |", "| --- | --- |", "| x\\|y |  |"]


def test_funnel():
    assert (
        funnel(1000, "documents", {"duplicate": 1, "contaminated": 20})
        == "1,000 documents -> 999 (duplicate: 1) -> 979 (contaminated: 20)"
    )


def test_text_of_a_model_s_is_one_line_that_any_terminal_shows(monkeypatch):
    assert visible("a\nb\tc\x1b[2Jd\u202ee\u2028\x9b é 漢") == "a⏎b\ufffdc\ufffd[2Jd\ufffde\ufffd\ufffd é 漢"
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert visible("é\n\x1b") == r"\xe9\u23ce\ufffd"


@pytest.mark.parametrize(("seconds", "clock"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (100 * 3600, "100:00:00")])
def test_clock(seconds, clock):
    assert show_clock(seconds) == clock
