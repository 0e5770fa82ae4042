"""What run.json says of a rung under way, and of how it ended."""

import pytest
from groundup import record
from groundup.checkpoint import LOCK, Lock
from groundup.errors import CRASHED, INTERRUPTED, MISTAKEN, SAVED, InputError
from groundup.running import Run, other


@pytest.fixture
def run(tmp_path):
    entry = {"rung": "sft", "status": "running", "seconds": 10.0}
    record.write(tmp_path, entry)
    return Run(tmp_path, dict(entry), None)


@pytest.mark.parametrize(
    ("status", "name"), [(SAVED, "interrupted"), (INTERRUPTED, "interrupted"), (CRASHED, "failed"), (MISTAKEN, "failed")]
)
def test_ending_is_written_with_its_reason(run, status, name):
    Run.under_way, run.lock = run, Lock(run.directory)
    run.ended(status, "  why " + "x" * 5000)
    found = record.read(run.directory)
    assert (found["status"], found["exit_status"]) == (name, status)
    assert found["reason"].startswith("why x") and len(found["reason"]) == 2000
    assert found["seconds"] >= 10.0
    assert Run.under_way is None and not (run.directory / LOCK).exists()


def test_first_to_end_knows_why(run):
    assert run.ended(SAVED, "the cause") == SAVED
    assert run.ended(CRASHED, "its consequence") == SAVED
    assert record.read(run.directory)["reason"] == "the cause"


def test_what_is_finished_stays_so(run):
    record.update(run.directory, status="finished")
    run.ended(CRASHED, "after the end")
    assert record.read(run.directory)["status"] == "finished"


def test_first_process_writes_and_speaks(run, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    run.say("unheard")
    run.note(saved_step=3)
    assert not run.main and "saved_step" not in record.read(run.directory)
    monkeypatch.setenv("RANK", "0")
    run.say("heard")
    run.note(saved_step=4)
    assert record.read(run.directory)["saved_step"] == 4
    assert capsys.readouterr().out == "sft: heard\n"


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"sha256": "a"}, {"sha256": "a"}, None),
        ({"sha256": "0123456789abcdef"}, {"sha256": "fedcba9876543210"}, "rows: sha256 0123456789ab -> fedcba987654"),
        ({"revision": "1"}, {"revision": "2"}, "rows: revision 1 -> 2"),
        ({"rows": 5}, {"rows": 6}, "rows: rows 5 -> 6"),
        ({"kept": 5}, {"kept": None}, "rows: kept 5 -> None"),
        ({"path": "a"}, {"path": "b"}, None),  # it may have been moved
    ],
)
def test_rows_are_told_apart_by_their_content(then, now, told):
    assert other({"name": "rows", **then}, {"name": "rows", **now}) == told


def test_other_rows_than_before_are_refused_unless_allowed(tmp_path):
    entry = {"rung": "sft", "status": "running", "seconds": 0.0}
    record.write(tmp_path, entry)
    before = {"data": [{"name": "train", "rows": 5}, {"name": "test", "rows": 2}]}
    goes_on = {"directory": tmp_path, "record": entry, "checkpoint": "checkpoint-1", "before": before}
    Run(**goes_on).uses([{"name": "train", "rows": 5}], [{"name": "test", "rows": 2}])
    run = Run(**goes_on)
    run.uses([{"name": "train", "rows": 5}])
    with pytest.raises(InputError, match="test: rows 2 -> 3"):
        run.uses([{"name": "test", "rows": 3}])
    Run(**goes_on, allowed=frozenset({"data"})).uses([{"name": "train", "rows": 6}])
    Run(**{**goes_on, "checkpoint": None}).uses([{"name": "train", "rows": 6}])
    assert record.read(tmp_path)["data"] == [{"name": "train", "rows": 6}]
