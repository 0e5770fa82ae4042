"""The processes of one run stop together, whichever of them is asked to or fails, and the run goes on."""

import json
import signal

import pytest

from faults.conftest import SPLIT, processes_of, wait_until
from faults.test_preemption import STEP, assert_saved, weights_of


def assert_goes_on_to(whole, both) -> None:
    assert [recipe.wait() for recipe in both] == [0, 0], both[0].stderr + both[1].stderr
    assert "going on from" in both[0].stdout
    assert both[0].record["world_size"] == 2 and weights_of(both[0].directory) == weights_of(whole)


@pytest.mark.parametrize("asked", [0, 1])
def test_signal_to_one_process_stops_both_at_the_same_step(asked, whole_pair, rungs, start_pair, tmp_path):
    settings = rungs.settings("sft") | SPLIT
    preludes = ["", ""]
    preludes[asked] = f"from harm import signal_before; signal_before({STEP!r}, 3)"
    both = start_pair("sft", tmp_path / "sft", settings, *preludes)
    assert_saved(both[0], 3)
    assert both[1].wait() == 75, both[1].stderr
    checkpoint = tmp_path / "sft" / "checkpoint-3"
    states = [(checkpoint / f"rng_state_{rank}.pth").exists() for rank in (0, 1)]
    assert states == [True, True] and "rng_state_1.pth" in (checkpoint / "MANIFEST.json").read_text()
    assert_goes_on_to(whole_pair, start_pair("sft", tmp_path / "sft", settings))


def test_signal_to_one_process_in_an_evaluation(rungs, start_pair, tmp_path):
    settings = rungs.settings("pretrain") | SPLIT
    harm = "from harm import signal_before; signal_before('transformers:Trainer.prediction_step')"
    both = start_pair("pretrain", tmp_path / "pretrain", settings, "", harm)
    assert_saved(both[0], 2)
    assert both[1].wait() == 75, both[1].stderr


LOST = "error: process {} ends because another process of this run did\n"


def test_signal_to_one_process_before_training_ends_both(rungs, start_pair, tmp_path):
    """Nothing is waited for, and nothing is lost; the run's record has the cause, not the consequence."""
    harm = "from harm import signal_before; signal_before('trl:SFTTrainer._prepare_dataset')"
    both = start_pair("sft", tmp_path / "sft", rungs.settings("sft") | SPLIT, "", harm)
    assert [recipe.wait() for recipe in both] == [75, 75], both[0].stderr + both[1].stderr
    assert both[0].stderr == LOST.format(0)
    assert (both[0].record["status"], both[0].record["exit_status"]) == ("interrupted", 75)


@pytest.mark.parametrize(
    ("harmed", "harm", "status"),
    [
        (1, f"signal_before({STEP!r}, 3, 'SIGKILL')", -9),
        (1, f"raise_before({STEP!r}, 3, 'what went wrong')", 1),
        (0, f"raise_before({STEP!r}, 3, 'what went wrong')", 1),
        (1, f"signal_before({STEP!r}, 3, 'SIGSTOP')", -9),
        (0, f"signal_before({STEP!r}, 3, 'SIGSTOP')", -9),
    ],
    ids=["killed", "raised", "first-raised", "stopped", "first-stopped"],
)
def test_what_ends_one_process_ends_the_other(harmed, harm, status, whole_pair, rungs, start_pair, tmp_path):
    settings = rungs.settings("sft") | SPLIT | {"silence_timeout": 1.0}
    preludes = ["", ""]
    preludes[harmed] = f"from harm import raise_before, signal_before; {harm}"
    both = start_pair("sft", tmp_path / "sft", settings, *preludes)
    assert both[harmed].wait() == status
    other = both[1 - harmed]
    assert other.wait() == 1
    reason = "another process of this run ended"
    if "SIGSTOP" in harm:  # who saw it says so first
        told = f"error: process {harmed} (pid {both[harmed].pid}) has stood still for 1 s; it is ended, and the run with it\n"
        assert other.stderr.endswith(told + LOST.format(1 - harmed))
    else:
        assert other.stderr.endswith(LOST.format(1 - harmed))
    assert "Traceback" not in other.stderr
    if "raise" in harm:
        reason = "ValueError: what went wrong"
        assert both[harmed].stderr.endswith(f"{reason}\n") and "Traceback" in both[harmed].stderr
    record = both[0].record
    assert (record["status"], record["exit_status"], record["reason"]) == ("failed", 1, reason)
    assert not (tmp_path / "sft" / "model.safetensors").exists()
    if harmed == 1:
        assert_goes_on_to(whole_pair, start_pair("sft", tmp_path / "sft", settings))


# -- through the launcher


@pytest.mark.slow
def test_signal_to_the_launcher_reaches_both(launch, whole_pair, rungs, start_pair, tmp_path):
    settings, directory, said = rungs.settings("sft") | SPLIT, tmp_path / "sft", tmp_path / "said"
    launcher = launch("cpu_2proc", "sft", directory, settings)
    wait_until(lambda: "step 1/" in said.read_text() or launcher.poll() is not None, "the first step")
    launcher.send_signal(signal.SIGTERM)
    wait_until(lambda: not processes_of(directory), "the end of both")
    record = json.loads((directory / "run.json").read_text())
    assert (record["status"], record["exit_status"], record["world_size"]) == ("interrupted", 75, 2), said.read_text()
    assert f"saved step {record['saved_step']}; run the same command to go on" in said.read_text()
    assert_goes_on_to(whole_pair, start_pair("sft", directory, settings))


@pytest.mark.slow
def test_launcher_ends_what_is_left_of_a_run(launch, rungs, tmp_path):
    settings = rungs.settings("sft") | SPLIT | {"max_steps": 10_000, "save_strategy": "no"}
    directory, said = tmp_path / "sft", tmp_path / "said"
    launcher = launch("cpu_2proc", "sft", directory, settings)
    wait_until(lambda: "step 9/" in said.read_text() or launcher.poll() is not None, "some steps")
    (second,) = (recipe for recipe in processes_of(directory) if recipe.environ().get("RANK") == "1")
    second.kill()
    wait_until(lambda: not processes_of(directory), "the end of all")
    assert launcher.wait() == 1
    record = json.loads((directory / "run.json").read_text())
    assert (record["status"], record["exit_status"]) == ("failed", 1), said.read_text()
    told = said.read_text()
    assert told.index(LOST.format(0)) < told.index("exitcode  : -9")
    assert "Traceback" not in told[: told.index(LOST.format(0))]
