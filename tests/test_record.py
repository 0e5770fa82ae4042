import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from groundup import record
from groundup.errors import InputError


def test_write_read_update(tmp_path):
    stage = tmp_path / "out" / "sft"
    assert record.read(stage) is None
    record.write(stage, {"rung": "sft", "status": "running", "seed": 0})
    assert record.read(stage) == {"schema": 1, "rung": "sft", "status": "running", "seed": 0}
    assert record.update(stage, status="finished", metrics={"loss": 0.5})["status"] == "finished"
    assert record.read(stage)["metrics"] == {"loss": 0.5} and record.read(stage)["seed"] == 0
    assert os.listdir(stage) == ["run.json"]
    with pytest.raises(FileNotFoundError):
        record.update(tmp_path, status="finished")


def test_file_that_is_not_finished_has_no_name(tmp_path):
    with pytest.raises(OSError), record.write_aside(tmp_path / "a") as file:
        file.write(b"half")
        raise OSError("no space left")
    assert list(tmp_path.iterdir()) == []
    with record.write_aside(tmp_path / "a") as file:
        file.write(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    record.write(tmp_path, {"rung": "sft"})
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        record.write(tmp_path, {"rung": "ppo"})
    assert record.read(tmp_path)["rung"] == "sft" and os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("text", ["{", "", "[1]", '{"schema": 2}', b"\xff\xfe"])
def test_what_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        record.read(tmp_path)
    assert str(tmp_path / "run.json") in str(error.value)


def test_plain_is_standard_json():
    class Schedule(StrEnum):
        LINEAR = "linear"

    @dataclass
    class Arguments:
        path: Path = Path("a/b")

    value = {
        "schedule": Schedule.LINEAR,
        "betas": (0.9, np.float32(0.5)),
        "loss": float("nan"),
        "limit": float("-inf"),
        "steps": np.int64(3),
        "flag": True,
        "columns": {"b", "a"},
        "arguments": Arguments(),
        3: "\ud800",
        "hub_token": "hf_" + "a1B2" * 9,
        "command": "sft.py --hub_token hf_" + "a1B2" * 9 + " --seed 1",
    }
    plain = record.plain(value)
    assert plain == {
        "schedule": "linear",
        "betas": [0.9, 0.5],
        "loss": "nan",
        "limit": "-inf",
        "steps": 3,
        "flag": True,
        "columns": ["a", "b"],
        "arguments": {"path": "a/b"},
        "3": "?",
        "hub_token": "<HUB_TOKEN>",
        "command": "sft.py --hub_token <HUB_TOKEN> --seed 1",
    }
    assert json.loads(json.dumps(plain, allow_nan=False)) == record.plain(plain) == plain


def test_importing_does_not_import_torch():
    script = """import sys, groundup.record, groundup.report
groundup.record.hardware(), groundup.record.versions()
print({"torch", "transformers"} & set(sys.modules))"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_versions_and_hardware():
    versions = record.versions()
    assert versions["python"].count(".") == 2 and versions["torch"] and versions["tokenizers"]
    hardware = record.hardware()
    assert list(hardware) == ["machine", "cpu", "cores", "memory_gb", "gpus"]
    assert hardware["cores"] == os.cpu_count() and hardware["memory_gb"] > 0 and hardware["cpu"]


def test_git_commit_is_the_current_directorys(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    assert record.git_commit() is None  # no checkout

    def git(*arguments):
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(["git", *who, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    assert record.git_commit() is None  # no commit yet
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    Path("untracked").write_text("1")
    assert record.git_commit() == commit
    Path("a").write_text("2")
    assert record.git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert record.git_commit() is None  # no git


def test_hashes_are_those_of_sha256sum(tmp_path):
    assert record.hash_weights(tmp_path) is None and record.hash_tokenizer(tmp_path) is None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"adapter")
    assert record.hash_weights(tmp_path) == hashlib.sha256(b"adapter").hexdigest()
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"two")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"one")
    assert record.hash_weights(tmp_path) == hashlib.sha256(b"onetwo").hexdigest()
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"x")
    assert record.hash_tokenizer(tmp_path) == hashlib.sha256(b"{}x").hexdigest()


def make_stage(run, rung, parent, weights):
    stage = run / rung
    record.write(stage, {"rung": rung, "parent": parent, "seconds": 1.5, "tokens": 10})
    (stage / "model.safetensors").write_bytes(weights)
    return {"path": stage.as_posix(), "weights_sha256": record.hash_weights(stage), "tokenizer_sha256": None}


def test_lineage_goes_up_to_where_the_records_end(tmp_path):
    base = {"path": "owner/base@main", "weights_sha256": "ff", "tokenizer_sha256": "ee"}
    sft = make_stage(tmp_path / "run", "sft", base, b"sft")
    ppo = make_stage(tmp_path / "run", "ppo", sft, b"ppo")
    steps = record.lineage(ppo["path"])
    assert [step["rung"] for step in steps] == ["ppo", "sft", None]
    unknown = dict.fromkeys(("seconds", "tokens", "flops", "data", "hub_model_id"))
    assert steps[0] == {"rung": "ppo", **ppo, **unknown, "seconds": 1.5, "tokens": 10}
    assert steps[2] == {"rung": None, **base, **unknown}


def test_lineage_follows_a_moved_run_only_to_the_same_weights(tmp_path):
    sft = make_stage(tmp_path / "run", "sft", None, b"sft")
    make_stage(tmp_path / "run", "ppo", sft, b"ppo")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert [step["rung"] for step in record.lineage(tmp_path / "moved/ppo")] == ["ppo", "sft"]
    (tmp_path / "moved/sft/model.safetensors").write_bytes(b"another")
    assert [step["rung"] for step in record.lineage(tmp_path / "moved/ppo")] == ["ppo", None]


def test_a_copied_run_does_not_mind_what_became_of_the_first(family):
    """`cp -r run run_seed0`, and the ladder is climbed again in `run`: the copy is whole, and its parents are its own."""
    shutil.copytree(family, family / "copy")
    for rung in ("base", "sft"):
        damage(family / rung / "model.safetensors")
        record.update(family / rung, seed=1, **record.hashes(family / rung))
    assert record.verify(family / "copy" / "ppo") == []
    parent = record.read(family / "copy" / "ppo")["parent"]
    assert record.find_parent(parent, family / "copy" / "ppo") == family / "copy" / "sft"
    assert len(record.verify(family / "ppo")) == 2  # whose parents did change


def test_lineage_ends_where_there_is_no_record_or_a_circle(tmp_path):
    assert [step["rung"] for step in record.lineage(tmp_path)] == [None]
    make_stage(tmp_path, "a", {"path": (tmp_path / "b").as_posix()}, b"a")
    make_stage(tmp_path, "b", {"path": (tmp_path / "a").as_posix()}, b"b")
    assert [step["rung"] for step in record.lineage(tmp_path / "a")] == ["a", "b"]


def test_changed():
    old = {"learning_rate": 0.001, "seed": 0, "kwargs": {"min_lr": 0.1, "same": 1}, "gone": None, "betas": [0.9, 0.95]}
    new = {"schedule": "cosine", "learning_rate": 0.002, "seed": 1, "kwargs": {"min_lr": 0.2, "same": 1}}
    new["betas"] = (0.9, 0.95)
    assert record.changed(old, new, ignore=["seed"]) == [
        "schedule: (not set) -> cosine",
        "learning_rate: 0.001 -> 0.002",
        "kwargs.min_lr: 0.1 -> 0.2",
        "gone: null -> (not set)",
    ]
    assert record.changed(old, new, ignore=["seed", "schedule", "learning_rate", "kwargs.min_lr", "gone"]) == []
    assert record.changed({"x": float("nan")}, json.loads('{"x": "nan"}')) == []


@pytest.fixture
def family(tmp_path, tiny_base):
    """base -> sft -> ppo, all finished, each with the tiny model."""
    parent = None
    for rung in ("base", "sft", "ppo"):
        shutil.copytree(tiny_base, tmp_path / rung)
        found = record.hashes(tmp_path / rung)
        record.write(tmp_path / rung, {"rung": rung, "status": "finished", "parent": parent, **found})
        parent = {"path": (tmp_path / rung).as_posix(), **found}
    return tmp_path


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_belongs_together_is_verified(family):
    assert record.verify(family / "ppo") == []
    shutil.rmtree(family / "base")
    assert record.verify(family / "ppo") == []  # what is gone cannot have changed


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("rung", ["base", "sft", "ppo"])
def test_verification_names_who_changed(family, rung, name):
    before = record.hashes(family / rung)
    damage(family / rung / name)
    (line,) = record.verify(family / "ppo")
    since = {"base": f"{family}/sft was made from it", "sft": f"{family}/ppo was made from it", "ppo": "its rung ended"}[rung]
    what = "weights_sha256" if name.startswith("model") else "tokenizer_sha256"
    assert line.startswith(f"{family / rung}: changed since {since}: {what} {before[what][:12]} -> ")


def test_verification_of_what_is_not_whole(family, tmp_path):
    assert record.verify(tmp_path / "nothing") == [f"{tmp_path}/nothing: there is no run.json"]
    record.update(family / "sft", status="interrupted")
    assert record.verify(family / "sft") == [f"{family}/sft: its run is interrupted"]
    config = json.loads((family / "ppo/config.json").read_text())
    (family / "ppo/config.json").write_text(json.dumps({**config, "vocab_size": 500}))
    (family / "ppo/eval.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    assert record.verify(family / "ppo") == [
        f"{family}/ppo: the model has 500 tokens and the tokenizer {config['vocab_size']}",
        f"{family}/ppo: eval.json tells of other weights; evaluate it again",
    ]
    (family / "ppo/model.safetensors").unlink()
    assert f"{family}/ppo: no weights there" in record.verify(family / "ppo")


def test_items_are_kept_beside_their_figures(tmp_path):
    items = {"items_sha256": record.hash_items(["a", {"b": 1}]), "values": [1, 0.5]}
    figures = {"one": {"value": 0.75, "n": 2, "items": items}, "two": {"value": 1.0}}
    path = record.write_evaluation(tmp_path / "sft", {"weights_sha256": "ab", "metrics": figures})
    assert path == tmp_path / "sft" / "eval.json"
    assert record.read_evaluation(tmp_path / "sft")["metrics"] == {"one": {"value": 0.75, "n": 2}, "two": {"value": 1.0}}
    assert record.read_items(tmp_path / "sft") == {"one": items} and record.read_items(tmp_path) == {}
    assert figures["one"]["items"] is items  # the caller's are left alone


def test_what_was_asked_has_an_identity():
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]
    assert record.hash_items(rows) == record.hash_items([dict(reversed(row.items())) for row in rows])
    assert (
        len({record.hash_items(rows), record.hash_items(rows[::-1]), record.hash_items(rows[:1]), record.hash_items([8, *rows])})
        == 4
    )
