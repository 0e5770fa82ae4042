import json
import os
import subprocess
import sys

import pytest
from groundup.checkpoint import LOCK, MANIFEST, Lock, checkpoints, damage, discard, newest_checkpoint, rotate, seal, step_of, sweep
from groundup.errors import InputError

FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json", "global_step4/states.pt")


@pytest.fixture
def save(tmp_path):
    def save(step, sealed=True):
        directory = tmp_path / f"checkpoint-{step}"
        for name in FILES:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(f"{name} of step {step}".encode() * 50)
        if sealed:
            seal(directory)
        return directory

    return save


# ---- one checkpoint


def test_sealed_is_whole(save):
    directory = save(4)
    assert damage(directory) is None
    assert set(json.loads((directory / MANIFEST).read_text())["files"]) == set(FILES)


def test_unsealed_was_never_finished(save):
    assert damage(save(4, sealed=False)) == f"{MANIFEST} is missing"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "said"), [("missing", "is missing"), ("truncated", "bytes, not"), ("one bit flipped", "is not what was written")]
)
def test_every_damage_to_every_file_is_named(save, name, harm, said):
    path = save(4) / name
    content = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if harm == "one bit flipped" else content[:-1])
    found = damage(path.parents[len(path.parts) - path.parts.index("checkpoint-4") - 2])
    assert name in found and said in found


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": []}', '{"files": {"a": 1}}', '{"files": {}}', "\0\xff"])
def test_manifest_that_is_none(save, text):
    directory = save(4)
    (directory / MANIFEST).write_text(text)
    assert MANIFEST in damage(directory)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_manifest_that_leads_outside_is_not_followed(save, tmp_path, name):
    directory = save(4)
    (tmp_path / "outside").write_text("x")
    (directory / MANIFEST).write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": "0"}}}))
    assert damage(directory) == f"{MANIFEST} names {name}, which is not inside"


def test_link_out_of_the_directory_is_not_followed(save, tmp_path):
    directory = save(4)
    path = directory / "optimizer.pt"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert damage(directory) == f"{MANIFEST} names optimizer.pt, which is not inside"


# ---- all of a run's


def test_newest_is_by_number(save, tmp_path):
    for step in (5, 40, 200):
        save(step)
    assert newest_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-200"), [])
    assert [step for step, _ in checkpoints(tmp_path)] == [5, 40, 200]


def test_other_names_are_no_checkpoints(save, tmp_path):
    save(10)
    for name in ("checkpoint-best", "checkpoint-20-old", "old-checkpoint-30", "checkpoint-", "checkpoint-50.damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert newest_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-10"), [])


def test_unfinished_is_deleted_and_damaged_is_set_aside(save, tmp_path):
    save(10)
    (save(20) / "optimizer.pt").unlink()
    save(30, sealed=False)
    found, said = newest_checkpoint(tmp_path, saved=20)
    assert found == str(tmp_path / "checkpoint-10")
    assert said == [
        f"{tmp_path}/checkpoint-30 was not finished, and is gone: {MANIFEST} is missing",
        f"{tmp_path}/checkpoint-20 is damaged: optimizer.pt is missing; set aside as checkpoint-20.damaged",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20.damaged"]
    (save(20) / "optimizer.pt").unlink()
    assert "set aside as checkpoint-20.damaged1" in newest_checkpoint(tmp_path)[1][0]


def test_nothing_was_saved(save, tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "missing") == (None, [])
    save(10, sealed=False)  # killed in the middle of its first save
    assert newest_checkpoint(tmp_path)[0] is None


def test_what_was_saved_and_is_lost_is_not_passed_over(save, tmp_path):
    """To begin at step 0 again, and say nothing, is the worst there is."""
    with pytest.raises(InputError, match="step 10 was saved, and there is no checkpoint"):
        newest_checkpoint(tmp_path, saved=10)
    (save(10) / MANIFEST).unlink()
    with pytest.raises(InputError, match=f"no checkpoint is whole: checkpoint-10: {MANIFEST} is missing"):
        newest_checkpoint(tmp_path, saved=10)
    (save(10) / "optimizer.pt").write_bytes(b"")
    with pytest.raises(InputError, match="optimizer.pt has 0 bytes"):
        newest_checkpoint(tmp_path)


def test_rotation_keeps_the_newest_sealed_ones_and_the_best(save, tmp_path):
    for step in (10, 20, 30, 40):
        save(step)
    unfinished = save(50, sealed=False)
    rotate(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 5
    rotate(tmp_path, 2, None, str(tmp_path / "checkpoint-10"))
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 30, 40, 50]
    rotate(tmp_path, 1)
    assert [step for step, _ in checkpoints(tmp_path)] == [40, 50] and unfinished.is_dir()


def test_kill_in_the_middle_of_deleting_leaves_nothing_that_looks_whole(save, tmp_path, monkeypatch):
    directory = save(10)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    discard(directory)
    assert checkpoints(tmp_path) == [] and any(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / ".run.json.123.tmp").write_text("{")
    kept = save(20)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


# ---- one run at a time


def test_second_run_is_told_who_has_the_directory(tmp_path):
    lock = Lock(tmp_path / "run")
    attempt = f"from pathlib import Path; from groundup.checkpoint import Lock; Lock(Path({str(tmp_path / 'run')!r}))"
    refused = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True)
    assert f"the directory is in use by process {os.getpid()} on " in refused.stderr and "since 20" in refused.stderr
    lock.release()
    assert not (tmp_path / "run").exists()  # nothing was written in it
    assert subprocess.run([sys.executable, "-c", attempt]).returncode == 0


def test_lock_of_a_process_that_is_gone_is_no_hindrance(tmp_path):
    die = (
        f"import os; from pathlib import Path; from groundup.checkpoint import Lock; a = Lock(Path({str(tmp_path)!r})); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", die]).returncode == 9
    assert (tmp_path / LOCK).is_file()
    Lock(tmp_path).release()
    assert not (tmp_path / LOCK).exists()


def test_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write there: Not a directory"):
        Lock(tmp_path / "file" / "run")


def test_step_is_told_by_the_name(tmp_path):
    assert step_of("checkpoint-12") == step_of("out/run-3/checkpoint-12") == step_of(tmp_path / "checkpoint-012") == 12
    others = (
        "last-checkpoint",
        "checkpoint-",
        "checkpoint-12.damaged",
        ".checkpoint-12.gone",
        "checkpoint-1/optimizer.pt",
        "checkpoint--1",
    )
    assert {step_of(name) for name in others} == {None}
