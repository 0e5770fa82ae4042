"""The exit status tells the truth: 0 finished, 75 saved, 2 the user's input, 1 crash; run.json too, since launchers collapse it."""

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from typing import Any

import pytest
from recipes.miniature import REPOSITORY, interrupt

STEPS = """
import os, signal, sys, torch, transformers
step = transformers.Trainer.training_step
def steps(self, model, inputs, *rest):
    loss = step(self, model, inputs, *rest)
    if self.state.global_step == 2:
        harm(self)
    return loss
transformers.Trainer.training_step = steps
"""
BEFORE = """
import os, signal, groundup.{module} as module
function = module.{name}
def harmed(*arguments, **settings):
    os.kill(os.getpid(), signal.SIGTERM)
    return function(*arguments, **settings)
module.{name} = harmed
"""
TOKENISING = """
import os, signal, groundup.shards as shards
add, count = shards.ShardWriter.add, 0
def counted(self, *document):
    global count
    count += 1
    if count == 100:
        os.kill(os.getpid(), signal.SIGTERM)
    return add(self, *document)
shards.ShardWriter.add = counted
"""
GRADES = "def grade(completions, **kwargs):\n    raise KeyError('grammar')\n"


def at_step_two(harm: str) -> str:
    return STEPS + f"def harm(trainer):\n    {harm}\n"


@dataclass
class Fault:
    """How a run is harmed, and how it must end: the status, the last line of what it says, and what run.json says of it."""

    status: int
    said: str
    recorded: str | None  # `status` in run.json; None: no run.json
    reason: str = ""
    recipe: str = "sft"
    prelude: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    traceback: bool = False


SAVED = "saved step 3; run the same command to go on"
NOTHING = "SIGTERM: nothing was saved yet; run the same command to go on"
AS_BEFORE = "fix:   did you mean `--learning_rate`?"
FAULTS = {
    "asked to stop before it began": Fault(75, NOTHING, None, prelude=BEFORE.format(module="model", name="check_model_path")),
    "asked to stop before training": Fault(
        75, NOTHING, "interrupted", "SIGTERM", prelude=BEFORE.format(module="model", name="load_causal_model")
    ),
    "asked to stop in tokenising": Fault(75, NOTHING, "interrupted", "SIGTERM", "pretrain", TOKENISING),
    "asked to stop between steps": Fault(
        75, f"SIGTERM: {SAVED}", "interrupted", "SIGTERM", prelude=at_step_two("os.kill(os.getpid(), signal.SIGTERM)")
    ),
    "USR1 between steps": Fault(
        75, f"SIGUSR1: {SAVED}", "interrupted", "SIGUSR1", prelude=at_step_two("os.kill(os.getpid(), signal.SIGUSR1)")
    ),
    "keyboard": Fault(
        130,
        "interrupted from the keyboard: saved step 2; run the same command to go on",
        "interrupted",
        "interrupted from the keyboard",
        prelude=at_step_two("raise KeyboardInterrupt"),
    ),
    "misspelt key": Fault(2, AS_BEFORE, None, settings={"learning_rte": 1.0}),
    "missing file": Fault(
        2, "fix:   check the path", "failed", "no such file: `zzz.jsonl` is not in ", settings={"dataset": "./zzz.jsonl"}
    ),
    "a reward that raises": Fault(
        2,
        "fix:   mend the function, or write a larger `max_faulty_share` (it is 0.2)",
        "failed",
        "the reward `grade` failed for ",
        "ppo",
        f"import sys, types\nsys.modules['own'] = own = types.ModuleType('own')\nexec({GRADES!r}, vars(own))",
        {"rewards": [{"name": "own.grade"}, {"name": "repetition", "ngram": 1}], "critic_model_name_or_path": "REWARD"},
    ),
    "crash": Fault(
        1,
        "ZeroDivisionError: division by zero",
        "failed",
        "ZeroDivisionError: division by zero",
        prelude=at_step_two("1 / 0"),
        traceback=True,
    ),
    "crash before training": Fault(
        1,
        "LookupError: none",
        "failed",
        "LookupError: none",
        prelude="import groundup.sft as m\ndef none(*a, **k):\n    raise LookupError('none')\nm.SFTTrainer = none",
        traceback=True,
    ),
    "somebody's sys.exit()": Fault(
        1,
        "RuntimeError: sys.exit(None) in the middle of the run",
        "failed",
        "sys.exit(None)",
        prelude=at_step_two("sys.exit()"),
        traceback=True,
    ),
    "somebody's sys.exit('why')": Fault(
        1, "in the middle of the run", "failed", "sys.exit('why')", prelude=at_step_two("sys.exit('why')"), traceback=True
    ),
    "no memory": Fault(
        1,
        "`gradient_accumulation_steps: 2`, the same 4 rows a step, and run it again: it goes on",
        "failed",
        "out of memory: ",
        prelude=at_step_two("raise torch.OutOfMemoryError('CUDA out of memory')"),
    ),
    "diverged": Fault(
        1,
        "lower `learning_rate` and go on with `--allow_change learning_rate`, or mend the rows that are named",
        "failed",
        "loss or gradient is no number in 1 steps in a row, up to step 3",
        prelude=at_step_two("trainer.model.get_input_embeddings().weight.grad.fill_(float('nan'))"),
        settings={"max_skipped_steps": 0},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_status_says_how_it_ended(name, rungs, start_recipe, tmp_path):
    fault = FAULTS[name]
    settings = {**rungs.settings(fault.recipe), **fault.settings}
    settings = {key: str(rungs["reward"].directory) if value == "REWARD" else value for key, value in settings.items()}
    recipe = start_recipe(fault.recipe, tmp_path / "run", settings, fault.prelude)
    assert recipe.wait() == fault.status, recipe.stderr
    assert recipe.stderr.strip().splitlines()[-1].endswith(fault.said), recipe.stderr
    assert ("Traceback" in recipe.stderr) == fault.traceback
    if fault.recorded is None:
        assert not (tmp_path / "run").exists()
        return
    record = recipe.record
    assert (record["status"], record["exit_status"]) == (fault.recorded, fault.status)
    assert record["reason"].startswith(fault.reason)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    if fault.status == 75:  # what it said last is so
        again = start_recipe(fault.recipe, tmp_path / "run", settings)
        assert again.wait() == 0, again.stderr
        assert again.record["status"] == "finished" and "exit_status" not in again.record


def test_finished_is_0_now_and_ever_after(rungs, start_recipe, tmp_path):
    settings = {**rungs.settings("sft"), "max_steps": 1, "save_strategy": "no"}
    recipe = start_recipe("sft", tmp_path / "run", settings)
    assert recipe.wait() == 0 and recipe.record["status"] == "finished"
    before = (tmp_path / "run" / "run.json").read_bytes()
    again = start_recipe("sft", tmp_path / "run", settings)
    assert again.wait() == 0 and "sft: finished already" in again.stdout and "Traceback" not in again.stderr
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_asked_to_stop_when_all_is_done_is_finished(rungs, start_recipe, tmp_path):
    settings = {**rungs.settings("sft"), "max_steps": 1, "save_strategy": "no"}
    recipe = start_recipe("sft", tmp_path / "run", settings, BEFORE.format(module="card", name="write_card"))
    assert recipe.wait() == 0, recipe.stderr
    assert recipe.record["status"] == "finished" and (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.5}, "other settings: learning_rate: 0.002 -> 0.5"),
        ({"per_device_train_batch_size": 2}, "holds an interrupted run of 4 rows a step"),
        ({"allow_change": "lerning_rate"}, "`allow_change: lerning_rate` is no setting"),
    ],
)
def test_refused_resumption_alters_no_record(change, said, rungs, start_recipe, tmp_path):
    directory = interrupt(rungs["sft"], tmp_path / "run", 2)
    before = (directory / "run.json").read_bytes()
    refused = start_recipe("sft", directory, {**rungs.settings("sft"), **change})
    assert refused.wait() == 2, refused.stderr
    assert said in refused.stderr and "Traceback" not in refused.stderr
    assert (directory / "run.json").read_bytes() == before and (directory / "checkpoint-2" / "MANIFEST.json").is_file()


def test_refused_second_start_alters_no_record(rungs, start_recipe, tmp_path):
    """Whatever it would have changed; and the first one goes on."""
    wait = f"import time\n    while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    settings = rungs.settings("sft")
    first = start_recipe("sft", tmp_path / "run", settings, at_step_two(wait))
    first.wait(until=lambda: (tmp_path / "run" / "checkpoint-2" / "MANIFEST.json").is_file() and "saved_step" in first.record)
    before = (tmp_path / "run" / "run.json").read_bytes()
    for change in ({}, {"learning_rate": 0.5}, {"dataset": "./zzz.jsonl"}):
        second = start_recipe("sft", tmp_path / "run", {**settings, **change})
        assert second.wait() == 2, second.stderr
        assert f"error: the directory is in use by process {first.pid} on " in second.stderr and "Traceback" not in second.stderr
        assert (tmp_path / "run" / "run.json").read_bytes() == before
    (tmp_path / "go").touch()
    assert first.wait() == 0, first.stderr


# ---- recipes/ladder.sh


@pytest.fixture
def climb(tmp_path):
    """`climb(accelerate)`: recipes/ladder.sh with a launcher that does `accelerate`, a line of bash, for the rung `$rung`."""
    (tmp_path / "recipes").mkdir()
    shutil.copy(REPOSITORY / "recipes" / "ladder.sh", tmp_path / "recipes")
    (tmp_path / "bin").mkdir()
    record = 'record() { mkdir -p "out/nano/$rung"; printf "%s" "$1" > "out/nano/$rung/run.json"; }'

    def climb(accelerate: str) -> subprocess.CompletedProcess:
        rung = 'for word in "$@"; do [[ $word != *.py ]] || rung=$(basename "$word" .py); done'
        for name, text in {"python": "exit 0", "accelerate": f'{rung}\n{record}\necho "$rung" >> tried\n{accelerate}'}.items():
            (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WORK": str(tmp_path)}
        (tmp_path / "tried").unlink(missing_ok=True)
        command = ["bash", str(tmp_path / "recipes" / "ladder.sh"), "nano"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    climb.tried = lambda: (tmp_path / "tried").read_text().split()
    return climb


STOPPED = json.dumps({"status": "interrupted", "exit_status": 75, "pid": 1}, indent=1)


def test_ladder_ends_with_75_and_a_line_when_a_rung_was_asked_to_stop(climb):
    done = climb(f"[ $rung != sft ] || {{ record '{STOPPED}'; exit 1; }}")
    assert (done.returncode, done.stderr) == (75, "sft: was asked to stop; the same command goes on\n")
    assert climb.tried() == ["pretrain", "sft"]


def test_ladder_does_not_take_an_earlier_stop_for_this_one(climb):
    climb(f"[ $rung != sft ] || {{ record '{STOPPED}'; exit 1; }}")
    done = climb("[ $rung != sft ] || exit 1")  # a crash before the recipe has opened its record
    assert (done.returncode, done.stderr) == (1, "")
    done = climb(f"[ $rung != sft ] || {{ record '{STOPPED.replace('75', '2')}'; exit 1; }}")
    assert (done.returncode, done.stderr) == (1, "")


def test_ladder_that_is_not_stopped_ends_with_0_and_a_launchers_own_status_is_kept(climb):
    assert climb("").returncode == 0 and climb.tried() == ["pretrain", "sft", "reward", "ppo", "grpo"]
    assert climb(f"kill -{signal.SIGKILL.value} $$").returncode == 128 + signal.SIGKILL
