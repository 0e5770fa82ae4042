"""The real client of huggingface_hub against a Hub on this machine: what is sent, what is not, and what is said when it fails."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http
import pytest
from groundup import hub, record
from groundup.checkpoint import damage, seal
from groundup.errors import InputError, RunError
from groundup.hub import Pushing, Repository
from hub_server import READ, WRITE, Fault, running
from huggingface_hub import ModelCard, constants

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for the Hub; none of them really."""
    waited = []
    for module in (hub, huggingface_hub.utils._http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def server(monkeypatch, waits, tmp_path):
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def stage(tmp_path, tiny_base):
    """A finished rung with two sealed checkpoints, of which the later one is the model."""
    directory = tmp_path / "nano" / "sft"
    shutil.copytree(tiny_base, directory)
    for step in (2, 4):
        shutil.copytree(tiny_base, directory / f"checkpoint-{step}")
        (directory / f"checkpoint-{step}/optimizer.pt").write_bytes(b"momenta %d" % step)
        (directory / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({"global_step": step}))
    weights = directory / "checkpoint-2/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    for step in (2, 4):
        seal(directory / f"checkpoint-{step}")
    metrics = {"cloze": {"value": 0.97, "low": 0.94, "high": 0.99, "n": 200}}
    found = record.hashes(directory)
    evaluation = {"schema": 1, "metrics": metrics, "samples": [], "weights_sha256": found["weights_sha256"]}
    record.write_json(directory / "eval.json", evaluation)
    record.write(directory, {"rung": "sft", "status": "finished", "parent": None, "data": [], "config": {}, **found})
    (directory.parent / "report.html").write_text("<p>a report</p>")
    (directory / "training_args.bin").write_bytes(b"a pickle")
    return directory


def push(*arguments: str) -> None:
    """recipes/push.py in this process."""
    spec = importlib.util.spec_from_file_location("recipe_push", RECIPES / "push.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    directory, name, *options = arguments
    told = {"public": "--public" in options, "revisions": "--revisions" in options, "license": None}
    if "--license" in options:
        told["license"] = options[options.index("--license") + 1]
    recipe.main(directory, name, **told)


def test_pushed_is_the_model_with_card_evaluation_and_report(server, stage, capsys):
    push(str(stage), "me/nano", "--license", "mit")
    files = server.files("me/nano")
    assert server.repositories["me/nano"].private
    assert {"model.safetensors", "tokenizer.json", "config.json", "run.json", "eval.json", "README.md", "report.html"} <= set(files)
    assert "training_args.bin" not in files and not [name for name in files if "checkpoint" in name or name.startswith(".")]
    assert files["model.safetensors"] == (stage / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.model_name, card.data.eval_results[0].metric_value) == ("mit", "nano", 0.97)
    assert 'model="me/nano"' in card.text
    assert f"{len(files)} files -> {server.url}/me/nano (private" in capsys.readouterr().out


def test_the_snippet_of_the_card_runs_from_the_hub(server, stage, capsys):
    push(str(stage), "me/nano")
    snippet = server.files("me/nano")["README.md"].decode().split("```python\n")[1].split("```")[0]
    capsys.readouterr()
    exec(snippet, {})
    assert capsys.readouterr().out.endswith("\n")
    assert any(line.endswith("/model.safetensors") for line in server.requests if line.startswith("GET /me/nano/resolve"))


def test_pushed_twice_is_pushed_once(server, stage, capsys):
    push(str(stage), "nano", "--revisions")
    commits, sent = {b: list(c) for b, c in server.repositories["me/nano"].branches.items()}, server.sent()
    push(str(stage), "me/nano", "--revisions")
    assert server.repositories["me/nano"].branches == commits and server.sent() == sent
    assert "nothing new ->" in capsys.readouterr().out


def test_nothing_is_left_of_the_model_that_was_there_before(server, stage):
    """An adapter was pushed, then the model that it was merged into: with both there transformers would load the adapter's base."""
    names = ("adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json", "gate.json")
    for name in names:
        (stage / name).write_text("{}")
    record.update(stage, **record.hashes(stage))
    push(str(stage), "me/nano")
    assert set(names) <= set(server.files("me/nano"))
    for name in (*names, "eval.json"):
        (stage / name).unlink()
    push(str(stage), "me/nano")
    assert not {*names, "eval.json"} & set(server.files("me/nano"))
    assert {"model.safetensors", "config.json", "report.html"} <= set(server.files("me/nano"))


def test_each_checkpoint_is_a_revision(server, stage, capsys):
    (stage / "checkpoint-4/tokenizer.json").write_text("{}")
    push(str(stage), "me/nano", "--public", "--revisions")
    assert set(server.repositories["me/nano"].branches) == {"main", "step-2"}
    assert "checkpoint-4 is left out: tokenizer.json has 2 bytes" in capsys.readouterr().out
    files = server.files("me/nano", "step-2")
    assert files["model.safetensors"] == (stage / "checkpoint-2/model.safetensors").read_bytes()
    assert "optimizer.pt" not in files and "eval.json" not in files and "report.html" not in files
    assert not server.repositories["me/nano"].private


def test_push_goes_on_after_a_cut(server, stage):
    server.faults = [Fault("POST .*/commit/step-4", gone=True)]
    with pytest.raises(RunError, match="the Hub cannot be reached"):
        push(str(stage), "me/nano", "--revisions")
    sent = server.sent()
    assert len(sent) == 2 and server.titles("me/nano") == ["Model, card, record and evaluation"]
    server.faults = []
    push(str(stage), "me/nano", "--revisions")
    assert server.sent() == sent  # not again
    assert server.titles("me/nano", "step-4")[-1] == "Weights at step 4"
    assert server.titles("me/nano") == ["Model, card, record and evaluation"]


def test_commit_whose_answer_was_lost_is_not_made_twice(server, stage, waits):
    server.faults = [Fault("POST .*/commit/main", after=True, times=1)]
    push(str(stage), "me/nano")
    assert server.titles("me/nano") == ["Model, card, record and evaluation"] and waits


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_what_does_not_belong_together_is_not_pushed(server, stage, name):
    (stage / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"not pushed: {stage}: changed since its rung ended"):
        push(str(stage), "me/nano")
    assert server.requests == []


# ---- Each failure

FAILURES = {
    "no token": (None, None, InputError, "there is no token"),
    "token unknown": ("hf_nobody", None, InputError, r"does not know the token \(401\)"),
    "token may read": (READ, None, InputError, r"may not write there \(403\): you have no right to create"),
    "offline": (WRITE, "offline", InputError, "HF_HUB_OFFLINE is set"),
    "revoked": (WRITE, Fault("POST .*/preupload", status=401), InputError, r"does not know the token \(401\)"),
    "forbidden": (WRITE, Fault("POST .*/commit", status=403), InputError, r"may not write there \(403\)"),
    "deleted": (WRITE, Fault("POST .*/preupload", status=404), InputError, r"no such repository or revision.*\(404\)"),
    "limited": (WRITE, Fault("POST .*/commit", status=429), RunError, r"takes no more requests for now \(429\)"),
    "broken": (WRITE, Fault("PUT /lfs", status=500), RunError, r"in trouble \(500\)"),
    "no JSON": (WRITE, Fault("POST /api/validate-yaml", status=500), RunError, "answers what is no JSON"),
    "slow": (WRITE, Fault("POST .*/commit", slow=True), RunError, "did not answer for 0.5 s"),
    "gone": (WRITE, Fault("GET /api/whoami", gone=True), RunError, "cannot be reached"),
    "gone while it uploads": (WRITE, Fault("PUT /lfs", gone=True), RunError, "cannot be reached"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_is_told_in_words_and_mended_by_pushing_again(server, stage, monkeypatch, failure):
    token, fault, kind, words = FAILURES[failure]
    if failure == "slow":
        monkeypatch.setattr(hub, "SILENCE", 0.5)
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", fault == "offline")
    server.faults = [fault] if isinstance(fault, Fault) else []
    with pytest.raises(kind, match=words) as caught:
        push(str(stage), "me/nano")
    assert caught.value.where == "me/nano" and caught.value.fix
    server.faults = []
    monkeypatch.setattr(hub, "SILENCE", 60)
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    push(str(stage), "me/nano")
    assert server.titles("me/nano") == ["Model, card, record and evaluation"]


def test_nobody_else_is_written_to(server, stage):
    server.make("you/nano", private=False)
    with pytest.raises(InputError, match="may not write there"):
        push(str(stage), "you/nano")
    assert not [line for line in server.requests if "preupload" in line]  # it was asked before anything was read
    with pytest.raises(InputError, match="no name for a repository"):
        push(str(stage), "a/b/c")


@pytest.mark.parametrize(
    ("headers", "asked"), [({"Retry-After": "37"}, 37), ({"RateLimit": '"api";r=0;t=55'}, 55), ({"Retry-After": "99999"}, 600)]
)
def test_the_hub_is_waited_for_as_long_as_it_asks(server, stage, waits, headers, asked):
    server.faults = [Fault("POST .*/commit", status=429, headers=headers, times=2)]
    push(str(stage), "me/nano")
    assert waits == [asked, asked] and server.titles("me/nano")


# ---- There and back


def running_stage(stage, *steps):
    """The stage as it was while it ran, with these checkpoints."""
    for path in stage.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name not in [f"checkpoint-{step}" for step in steps]:
            shutil.rmtree(path)
    record.write(stage, {"rung": "sft", "status": "running", "saved_step": max(steps), "config": {}})
    return stage


def pushing(strategy="checkpoint", always=False):
    said = []
    made = Pushing(Repository("me/run").open(), strategy, always, said.append)
    return made, said


@pytest.mark.parametrize(("strategy", "folder"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-4")])
def test_checkpoint_comes_back_whole(server, stage, tmp_path, strategy, folder):
    running_stage(stage, 2, 4)
    made, said = pushing(strategy)
    for step in (2, 4):
        made.checkpoint(stage / f"checkpoint-{step}", last=True)
    assert f"{folder}/MANIFEST.json" in server.files("me/run") and said == []
    assert ("checkpoint-2/MANIFEST.json" in server.files("me/run")) == (strategy == "all_checkpoints")
    there = tmp_path / "fresh"
    there.mkdir()
    assert made.repository.fetch(there).startswith("checkpoint-4 is from me/run on the Hub")
    assert damage(there / "checkpoint-4") is None and not (there / ".hub").exists()
    for path in (stage / "checkpoint-4").iterdir():
        assert (there / "checkpoint-4" / path.name).read_bytes() == path.read_bytes()
    assert record.read(there) == record.read(stage)


def test_files_of_an_earlier_checkpoint_do_not_stay(server, stage):
    running_stage(stage, 2, 4)
    (stage / "checkpoint-2/rng_state_1.pth").write_bytes(b"of a second process")
    seal(stage / "checkpoint-2")
    made, _ = pushing()
    made.checkpoint(stage / "checkpoint-2", last=True)
    assert "last-checkpoint/rng_state_1.pth" in server.files("me/run")
    made.checkpoint(stage / "checkpoint-4", last=True)
    assert "last-checkpoint/rng_state_1.pth" not in server.files("me/run")


def test_damaged_checkpoint_is_passed_over(server, stage, tmp_path):
    running_stage(stage, 2, 4)
    made, _ = pushing("all_checkpoints")
    for step in (2, 4):
        made.checkpoint(stage / f"checkpoint-{step}", last=True)
    files = server.repositories["me/run"].branches["main"][-1].files
    files["checkpoint-final/MANIFEST.json"] = files["checkpoint-4/MANIFEST.json"]  # somebody's own
    files["checkpoint-4/optimizer.pt"].content = b"something else"
    (tmp_path / "fresh").mkdir()
    assert made.repository.fetch(tmp_path / "fresh").startswith("checkpoint-2 is from")
    files["checkpoint-2/optimizer.pt"].content = b"something else"
    (tmp_path / "another").mkdir()
    with pytest.raises(InputError, match=r"no checkpoint on the Hub is whole: checkpoint-4: .*; checkpoint-2: "):
        made.repository.fetch(tmp_path / "another")


def test_finished_model_comes_back(server, stage, tmp_path):
    push(str(stage), "me/run")
    (tmp_path / "fresh").mkdir()
    assert Repository("me/run").fetch(tmp_path / "fresh").startswith("the finished model is from me/run")
    assert record.verify(tmp_path / "fresh") == []
    files = server.repositories["me/run"].branches["main"][-1].files
    files["model.safetensors"].content = b"something else"
    (tmp_path / "another").mkdir()
    with pytest.raises(InputError, match="what the Hub has is not what was pushed"):
        Repository("me/run").fetch(tmp_path / "another")
    assert record.read(tmp_path / "another") is None


def test_fetching_goes_on_after_a_cut(server, stage, tmp_path):
    running_stage(stage, 4)
    made, _ = pushing()
    made.checkpoint(stage / "checkpoint-4", last=True)
    (tmp_path / "fresh").mkdir()
    server.faults = [Fault("GET .*/resolve/.*optimizer.pt", status=403)]
    with pytest.raises(InputError):
        made.repository.fetch(tmp_path / "fresh")
    assert record.read(tmp_path / "fresh") is None  # not yet a run that could go on
    server.faults, server.requests = [], []
    made.repository.fetch(tmp_path / "fresh")
    assert not [line for line in server.requests if line.startswith("GET") and line.endswith("run.json")]
    assert damage(tmp_path / "fresh/checkpoint-4") is None


def test_repository_without_a_run_has_nothing_to_go_on_from(server, tmp_path):
    assert Repository("me/new").open().fetch(tmp_path) is None
    assert not list(tmp_path.glob("*.json"))


def test_only_weights_go_with_every_save_and_nothing_before_the_end(server, stage):
    running_stage(stage, 4)
    for strategy, expected in (("end", set()), ("every_save", {"run.json", "model.safetensors", "config.json", "tokenizer.json"})):
        made, _ = pushing(strategy)
        made.checkpoint(stage / "checkpoint-4", last=True)
        assert expected <= set(server.files("me/run")) and "optimizer.pt" not in server.files("me/run")
        assert bool(server.files("me/run")) == bool(expected)


def test_no_step_waits_for_a_push_and_what_is_being_sent_stays(server, stage):
    running_stage(stage, 2, 4)
    made, said = pushing("all_checkpoints")
    server.faults = [Fault("PUT /lfs", slow=True, times=1)]
    made.checkpoint(stage / "checkpoint-2")
    assert made.sending == [stage / "checkpoint-2"]
    made.checkpoint(stage / "checkpoint-4")  # left out
    assert made.sending == [stage / "checkpoint-2"]
    server.closing.set()
    made.wait()
    assert made.sending == [] and "checkpoint-2/MANIFEST.json" in server.files("me/run")
    assert "checkpoint-4/MANIFEST.json" not in server.files("me/run")


def test_push_that_failed_is_said(server, stage):
    running_stage(stage, 4)
    made, said = pushing()
    server.faults = [Fault("POST .*/commit", status=403)]
    made.checkpoint(stage / "checkpoint-4", last=True)
    assert said == ["checkpoint-4 was not pushed: the token may not write there (403): as the test asks; the run goes on"]
    made.finish(stage)
    assert said[1] == (
        f"not pushed: the token may not write there (403): as the test asks; run `python recipes/push.py {stage} me/run`"
    )
