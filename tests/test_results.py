import pytest
from groundup import report, results, scoreboard
from invented import add_rung, result, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "nano")


def test_markdown_table(run):
    lines = results.markdown_table(report.collect(run)).splitlines()
    assert lines[0] == "| Rung | Bits per byte | Cloze | Asked | Problems | Problems, any of 8 | zeal |"
    assert lines[3] == "| pretrain | 0.60 (0.59-0.61) | **97 % (94-100)** |  | 10 % (7-13) |  |  |"
    assert lines[5] == "| reward | not evaluated |  |  |  |  |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_changes_are_from_the_parent_and_losses_show(run):
    cells = {row["name"]: row["cells"] for row in results.compare(report.collect(run))}
    assert [cell.get("change") and cell["change"]["text"] for cell in cells["cloze"]] == [
        None,
        "▲ 85 pts",
        "▼ 37 pts",
        None,
        "▼ 1 pt",
    ]
    pretrain, sft, grpo = (cells["cloze"][index]["change"] for index in (1, 2, 4))
    assert (pretrain["base"], pretrain["kind"], pretrain["overlap"]) == ("random", "gain", False)
    assert (sft["base"], sft["kind"], sft["overlap"]) == ("pretrain", "loss", False)
    assert (grpo["base"], grpo["kind"], grpo["overlap"]) == ("sft", "loss", True)
    assert [cell.get("best") for cell in cells["problems"]] == [False, False, False, None, True]
    assert cells["zeal"][4]["best"] is False  # nothing to be better than


def test_lower_is_better_where_it_is(tmp_path):
    for name, value in (("random", 3.0), ("pretrain", 0.6), ("sft", 0.7)):
        add_rung(tmp_path, name, {"bits_per_byte": {"value": value, "low": value, "high": value, "n": 1}})
    cells = results.compare(report.collect(tmp_path))[0]["cells"]
    assert [cell["best"] for cell in cells] == [False, True, False]
    assert [cell["change"] and cell["change"]["kind"] for cell in cells] == [None, "gain", "loss"]
    assert cells[0]["bar"] == [1, 1, 1]


def contaminated(value, share):
    return result(value) | {"contaminated": share}


def test_the_overlap_with_the_training_data_stands_small_beside_the_figure(tmp_path):
    add_rung(tmp_path, "pretrain", {"cloze": contaminated(0.9, 0.0), "problems": contaminated(0.1, "not checked")})
    add_rung(tmp_path, "sft", {"cloze": contaminated(0.95, 0.034), "problems": contaminated(0.7, "not checked")})
    found = report.collect(tmp_path)
    lines = results.markdown_table(found).splitlines()
    assert lines[0] == "| Rung | Cloze | Problems †? |"  # the same for all rungs: said once
    assert lines[2] == "| pretrain | 90 % (87-93) †0% | 10 % (7-13) |"
    assert lines[3] == "| sft | **95 % (92-98)** †3% | **70 % (67-73)** |"
    assert lines[4:] == ["", scoreboard.OVERLAP]
    report.write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="seen"') == 3 and page.count(scoreboard.OVERLAP) == 1
    assert 'Problems <small class="seen">†?</small>' in page and '92-98 <small class="seen">†3%</small>' in page


def test_without_marks_nothing_is_explained(run):
    report.write_report(run)
    assert scoreboard.OVERLAP not in (run / "report.html").read_text() + (run / "report.md").read_text()


def test_what_a_rung_cost_stands_beside_what_it_gained(run):
    found = report.collect(run)
    sft, grpo = results.cost(found, results.compare(found))  # of the reward model nothing is measured
    assert sft == {
        "rung": "sft",
        "base": "pretrain",
        "loss": ["Cloze: 97 % → 60 %"],
        "gain": ["Problems: 10 % → 30 %"],
        "same": [],
    }
    assert (grpo["loss"], grpo["gain"], grpo["same"]) == ([], ["Problems: 30 % → 70 %"], ["Cloze"])
    page = report.write_report(run).read_text()
    text = (run / "report.md").read_text()
    assert "<li>Cloze: 97 % → 60 %</li>" in page and "Nothing that was measured got worse." in page
    assert "- **sft**, after pretrain. Got worse: Cloze: 97 % → 60 %. Got better: Problems: 10 % → 30 %.\n" in text


def test_a_change_without_intervals_is_not_called_clear(tmp_path):
    add_rung(tmp_path, "pretrain", {"cloze": {"value": 0.9}})
    add_rung(tmp_path, "sft", {"cloze": {"value": 0.1}})
    found = report.collect(tmp_path)
    assert results.cost(found, results.compare(found))[0]["same"] == ["Cloze"]


def test_a_small_change_between_narrow_intervals_is_told(tmp_path):
    for name, value in (("pretrain", 0.500), ("sft", 0.503)):
        add_rung(tmp_path, name, {"cloze": {"value": value, "low": value - 0.001, "high": value + 0.001, "n": 10**6}})
    (row,) = results.compare(report.collect(tmp_path))
    assert row["cells"][1]["change"] | {"text": "▲ 0.3 pts", "kind": "gain", "apart": True} == row["cells"][1]["change"]


def test_headlines_follow_the_longest_line_of_descent(run):
    """A rung beside the line, last in the table, is not what the run came to."""
    add_rung(run, "pretrain", started="2026-01-01T00:00:00+00:00")
    add_rung(run, "grpo_other", {"problems": result(0.05)}, parent={"path": "out/nano/pretrain"}, started="2027")
    found = report.collect(run)
    assert found["rungs"][-1]["name"] == "grpo_other"
    (problems,) = (line for line in results.headlines(found, results.compare(found)) if line["label"] == "Problems")
    assert (problems["first"]["text"], problems["last"]["text"]) == ("0 %", "70 %")


def test_a_circle_of_parents_has_an_end():
    rungs = [{"name": name, "parent": {"path": parent}} for name, parent in (("a", "b"), ("b", "c"), ("c", "b"))]
    assert [rung["name"] for rung in results.ancestors(rungs[0], rungs)] == ["b", "c"]
    assert [rung["name"] for rung in results.ancestors(rungs[1], rungs)] == ["c"]
