"""A run that is pushed: what the Hub has when it is killed, how it goes on elsewhere, and that no Hub ends it."""

import functools
import json
import shutil
import signal

import pytest
from groundup import record
from groundup.checkpoint import damage
from hub_server import READ, WRITE, Fault, running

from faults.conftest import SPLIT, pair
from faults.test_preemption import weights_of
from faults.test_ranks import assert_goes_on_to

PRELUDE = """
from types import SimpleNamespace
import groundup.hub
import huggingface_hub.constants as constants
import huggingface_hub.utils._http as http

constants.ENDPOINT, constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH = {url!r}, {cache!r}, {cache!r} + "/token"
constants.HUGGINGFACE_CO_URL_TEMPLATE = {url!r} + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = {offline}, True
http.time = groundup.hub.time = SimpleNamespace(sleep=lambda seconds: None)
"""


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def start_pushed(server, start_recipe, rungs, tmp_path):
    """recipes/sft.py with `push_to_hub`, into a directory of this name."""

    def start(name, prelude="", token=WRITE, offline=False, second_process=None, **settings):
        settings = {**rungs.settings("sft"), "push_to_hub": True, "hub_model_id": "run", "hub_strategy": "checkpoint", **settings}
        before = PRELUDE.format(url=server.url, cache=str(tmp_path / "cache"), offline=offline)
        run = functools.partial(start_recipe, HF_TOKEN=token)
        if second_process is None:
            return run("sft", tmp_path / name, settings, before + prelude)
        return pair(run, "sft", tmp_path / name, settings | SPLIT, before + prelude, second_process)

    return start


KILL = """
import os, signal
from groundup.saving import Saving
save = Saving.save_and_seal
def save_and_die(self, *arguments):
    save(self, *arguments)
    self.run.hub.wait()
    os.kill(os.getpid(), signal.SIGKILL)
Saving.save_and_seal = save_and_die
"""


def test_killed_run_goes_on_from_the_hub_on_a_machine_that_has_nothing(server, rungs, start_pushed, tmp_path):
    whole = rungs["sft"]
    first = start_pushed("first", KILL, token="", hub_token=WRITE)
    assert first.wait() == -signal.SIGKILL, first.stderr
    there = server.files("me/run")
    assert {"run.json", "last-checkpoint/MANIFEST.json", "last-checkpoint/optimizer.pt"} <= set(there)
    assert not [name for name, content in there.items() if WRITE.encode() in content]  # training_args.bin holds the arguments
    shutil.rmtree(tmp_path / "first")
    second = start_pushed("second")
    assert second.wait() == 0, second.stderr
    assert "sft: checkpoint-2 is from me/run on the Hub" in second.stdout
    assert f"going on from {tmp_path}/second/checkpoint-2" in second.stdout
    assert weights_of(tmp_path / "second") == weights_of(whole.directory)
    pushed = server.files("me/run")
    assert b'model="me/run"' in pushed["README.md"]
    assert pushed["model.safetensors"] == (whole.directory / "model.safetensors").read_bytes()
    assert json.loads(pushed["run.json"])["status"] == "finished" and b"base_model" not in pushed["README.md"]
    assert server.repositories["me/run"].private

    third = start_pushed("third")  # and what has finished is not begun again
    assert third.wait() == 0, third.stderr
    assert "the finished model is from me/run" in third.stdout and "finished already" in third.stdout
    assert record.verify(tmp_path / "third") == []


def test_first_of_two_processes_speaks_with_the_hub(server, whole_pair, start_pushed, tmp_path):
    """The second has no way to it, and nothing waits for one that it does not have."""
    no_hub = "import groundup.hub; groundup.hub.Repository = None"
    first = start_pushed("first", KILL, second_process=no_hub)
    assert first[0].wait() == -signal.SIGKILL and first[1].wait() == 1, first[1].stderr
    assert "last-checkpoint/rng_state_1.pth" in server.files("me/run")
    shutil.rmtree(tmp_path / "first")
    second = start_pushed("second", second_process=no_hub)
    assert_goes_on_to(whole_pair, second)
    assert "sft: checkpoint-2 is from me/run on the Hub" in second[0].stdout and "Hub" not in second[1].stdout
    assert server.files("me/run")["model.safetensors"] == (tmp_path / "second" / "model.safetensors").read_bytes()


def test_hub_that_will_not_take_the_run_ends_both_processes(server, start_pushed, tmp_path):
    both = start_pushed("run", token=READ, second_process="")
    assert [process.wait() for process in both] == [2, 2]
    assert both[0].stderr.startswith("error: the token may not write there (403)")
    assert not (tmp_path / "run").exists()


def test_run_that_is_asked_to_stop_sends_its_last_checkpoint(server, start_pushed, tmp_path):
    run = start_pushed("run", save_steps=100)
    run.wait(until=lambda: "step 1/" in run.stdout)
    run.send(signal.SIGTERM)
    assert run.wait() == 75, run.stderr
    step = run.record["saved_step"]
    assert json.loads(server.files("me/run")["last-checkpoint/trainer_state.json"])["global_step"] == step
    for name, content in server.files("me/run").items():
        if name.startswith("last-checkpoint/"):
            assert content == (tmp_path / f"run/checkpoint-{step}" / name.partition("/")[2]).read_bytes()
    assert damage(tmp_path / f"run/checkpoint-{step}") is None


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ({"token": READ}, 2, "error: the token may not write there (403): you have no right to create"),
        ({"offline": True}, 2, "error: the Hub is not asked: HF_HUB_OFFLINE is set"),
        ({"hub_model_id": "you/theirs"}, 2, "error: the token may not write there (403)"),
        ({"fault": Fault("GET /api/whoami", status=503)}, 1, "error: the Hub is in trouble (503)"),
    ],
    ids=["read only", "offline", "not mine", "trouble"],
)
def test_hub_that_will_not_take_the_run_is_told_before_step_0(server, start_pushed, tmp_path, how, status, words):
    how = dict(how)
    server.make("you/theirs", private=False)
    server.faults = [fault] if (fault := how.pop("fault", None)) else []
    run = start_pushed("run", **how)
    assert run.wait() == status
    assert words in run.stderr and "`--push_to_hub false`" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


def test_run_outlives_a_hub_that_is_lost(server, rungs, start_pushed, tmp_path):
    whole = rungs["sft"]
    server.faults = [Fault("POST .*/(commit|preupload)", status=500)]
    run = start_pushed("run")
    assert run.wait() == 0, run.stderr
    assert "checkpoint-2 was not pushed: the Hub is in trouble (500); the run goes on" in run.stdout
    again = f"run `python recipes/push.py {tmp_path}/run me/run`"
    assert run.stdout.strip().endswith(f"sft: not pushed: the Hub is in trouble (500); {again}")
    assert run.record["status"] == "finished" and weights_of(tmp_path / "run") == weights_of(whole.directory)
    assert 'model="run"' in (tmp_path / "run/README.md").read_text()  # not from where it never came to


def test_run_that_has_begun_goes_on_without_the_hub(server, rungs, start_pushed, tmp_path):
    whole = rungs["sft"]
    first = start_pushed("run", KILL)
    assert first.wait() == -signal.SIGKILL
    again = start_pushed("run", offline=True)
    assert again.wait() == 0, again.stderr
    assert "sft: the Hub is not asked: HF_HUB_OFFLINE is set; the run goes on, and pushing is tried again" in again.stdout
    assert "not pushed: the Hub is not asked" in again.stdout
    assert weights_of(tmp_path / "run") == weights_of(whole.directory)


def test_other_settings_are_refused_there_too(server, start_pushed, tmp_path):
    first = start_pushed("first", KILL)
    assert first.wait() == -signal.SIGKILL
    second = start_pushed("second", learning_rate=0.5)
    assert second.wait() == 2
    assert "learning_rate" in second.stderr and "give another `hub_model_id`" in second.stdout


def test_checkpoint_that_is_being_sent_is_not_deleted(server, start_pushed, tmp_path):
    server.faults = [Fault("PUT /lfs", slow=True, times=1)]
    run = start_pushed("run", save_steps=1, save_total_limit=1)
    run.wait(until=lambda: (tmp_path / "run/checkpoint-4").exists())  # by then two have followed and been left out
    assert not (tmp_path / "run/checkpoint-2").exists()
    server.closing.set()
    assert run.wait() == 0, run.stderr
    assert "was not pushed" not in run.stdout
    titles = server.titles("me/run")
    assert titles[0] == "Training in progress, step 1" and "Training in progress, step 2" not in titles
