"""The ladder in miniature through the real launcher, as one process and as two."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trackio
from groundup import record

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
# Two steps of each recipe on its nano YAML. Paths in the YAML files are relative: the ladder is climbed in a folder of its own.
COMMON = ["--max_steps", "2", "--logging_steps", "1", "--warmup_steps", "0"]
ROLLOUT = ["--per_device_train_batch_size", "8", "--max_completion_length", "8", "--max_rows", "32"]
SIZES = '{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}'
OPTIONS = {
    "pretrain": [
        *["--model_config", SIZES, "--max_length", "64", "--max_eval_rows", "8", "--eval_steps", "2", "--save_steps", "2"],
        *["--lr_scheduler_kwargs", '{"num_decay_steps": 1}'],
    ],
    "sft": ["--max_rows", "64", "--per_device_train_batch_size", "4"],
    "reward": ["--max_rows", "64", "--max_eval_rows", "8", "--per_device_train_batch_size", "4"],
    "dpo": ["--max_rows", "64", "--max_eval_rows", "8", "--per_device_train_batch_size", "4"],
    "ppo": ROLLOUT,
    "grpo": [*ROLLOUT, "--gate_prompts", "8", "--force", "true", "--extra_rollouts", "1"],  # two steps teach nothing to build on
}


def climb(folder, *command):
    """Run a command in `folder`, as a user would from a terminal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        environment.pop(name, None)
    command = [str(part) for part in command]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said, complained = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            # Each process says where it stands and ends; the launcher, killed, would leave them behind.
            for child in psutil.Process(process.pid).children(recursive=True):
                child.send_signal(signal.SIGABRT)
            process.terminate()
            said, complained = process.communicate()
            pytest.fail(f"still running after four minutes: {' '.join(command)}\n{said[-2000:]}\n{complained[-8000:]}")
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def launch(folder, name, *options, config="cpu.yaml", launcher=None):
    launcher = launcher or ["--config_file", REPOSITORY / "accelerate_configs" / config]
    recipe = [REPOSITORY / "recipes" / f"{name}.py", "--config", REPOSITORY / "recipes" / "nano" / f"{name}.yaml"]
    return climb(folder, ACCELERATE, "launch", *launcher, *recipe, *COMMON, *OPTIONS[name], *options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world):
    """Where the ladder is climbed: out/nano as the YAML files know it, with the small world in it."""
    directory = tmp_path_factory.mktemp("ladder")
    (directory / "out" / "nano").mkdir(parents=True)
    (directory / "out" / "nano" / "world").symlink_to(world)
    return directory


@pytest.fixture(scope="module")
def ladder(folder):
    """All rungs, each as a process of its own; what they printed."""
    said = {}
    yaml = REPOSITORY / "recipes" / "nano" / "tokenizer.yaml"
    command = [sys.executable, REPOSITORY / "recipes" / "tokenizer.py", "--config", yaml, "--vocab_size", "512"]
    done = {"tokenizer": climb(folder, *command)}
    for name in OPTIONS:
        assert all(process.returncode == 0 for process in done.values()), [p.stderr[-3000:] for p in done.values()][-1]
        done[name] = launch(folder, name)
    for name, process in done.items():
        assert process.returncode == 0, process.stderr[-3000:]
        said[name] = process.stdout
    return said


@pytest.fixture(scope="module")
def evaluated(folder, ladder):
    """The evaluation of every rung, and the report."""
    yaml = REPOSITORY / "recipes" / "nano" / "evaluate.yaml"
    script = [sys.executable, REPOSITORY / "recipes" / "evaluate_model.py", "--config", yaml, "--run_dir", "out/nano"]
    small = ["--max_rows", "4", "--k", "2", "--max_new_tokens", "8"]
    done = climb(folder, *script, *small, "--models", "random", *OPTIONS)
    assert done.returncode == 0, done.stderr[-3000:]
    report = climb(folder, sys.executable, REPOSITORY / "recipes" / "report.py", "out/nano")
    assert report.returncode == 0, report.stderr[-3000:]
    return done.stdout, report.stdout


def test_a_run_can_be_watched(ladder):
    """As the YAML files have it: curves in trackio, and what the model says; a reward model says nothing."""
    for name in OPTIONS:
        assert f"{name}: curves: trackio show --project nano   (run {name}-20" in ladder[name]
        assert len(re.findall(r"^step [12]/2  says: .", ladder[name], re.MULTILINE)) == (0 if name == "reward" else 2)
    assert {run.name.partition("-")[0] for run in trackio.Api().runs("nano")} == set(OPTIONS)


def test_each_rung_stands_on_the_one_before(folder, ladder):
    nano = folder / "out" / "nano"
    assert "tokenizer: 512 tokens" in ladder["tokenizer"]
    for name in OPTIONS:
        entry = record.read(nano / name)
        assert (entry["status"], entry["steps"], entry["world_size"]) == ("finished", 2, 1)
        assert f"{name}: done in" in ladder[name]
        assert "step 2/2" in ladder[name]
        assert entry["tokenizer_sha256"] == record.hash_tokenizer(nano / "tokenizer")
    parents = {"sft": "pretrain", "reward": "sft", "dpo": "sft", "ppo": "sft", "grpo": "ppo"}
    for name, parent in parents.items():
        entry = record.read(nano / name)["parent"]
        assert entry["path"] == f"out/nano/{parent}"
        assert entry["weights_sha256"] == record.hash_weights(nano / parent)


def test_every_rung_is_measured(folder, evaluated):
    said, _ = evaluated
    nano = folder / "out" / "nano"
    for name in ("random", "pretrain", "sft", "dpo", "ppo", "grpo"):
        metrics = record.read_evaluation(nano / name)["metrics"]
        assert {"bits_per_byte", "cloze", "asked", "follows", "problems", "stops", "true_win_rate"} <= metrics.keys()
        assert f"evaluate: {name}: bits_per_byte " in said
        assert "## Results" in (nano / name / "README.md").read_text()
    assert set(record.read_evaluation(nano / "reward")["metrics"]) == {"pair_accuracy"}
    bits = [record.read_evaluation(nano / name)["metrics"]["bits_per_byte"]["value"] for name in ("random", "pretrain")]
    assert bits[1] < bits[0]  # two steps, and it shows


def test_report_shows_every_rung(folder, evaluated):
    _, said = evaluated
    report = json.loads((folder / "out" / "nano" / "report.json").read_text())
    rungs = [rung["rung"] for rung in report["rungs"]]
    assert rungs == ["random", "pretrain", "sft", "dpo", "reward", "ppo", "grpo"]
    page = (folder / "out" / "nano" / "report.html").read_text()
    for name in rungs:
        assert name in said and name in page
    assert not re.search(r"""(src|href)=["']https?://""", page)  # a page that can be sent as it is


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes(folder, ladder, name):
    done = launch(folder, name, "--output_dir", f"out/two/{name}", "--save_steps", "1", config="cpu_2proc.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    directory = folder / "out" / "two" / name
    entry = record.read(directory)
    assert (entry["status"], entry["steps"], entry["world_size"]) == ("finished", 2, 2)
    # each rank keeps the state of its own random numbers
    newest = directory / "checkpoint-2"
    assert {path.name for path in newest.glob("rng_state*.pth")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert done.stdout.count(f"{name}: done in") == 1 and done.stdout.count("step 2/2  ") >= 1
    if name == "pretrain":
        assert entry["tokens"] == 2 * record.read(folder / "out" / "nano" / name)["tokens"]


@pytest.mark.parametrize("name", ["pretrain"])
def test_lost_process_is_refused(folder, ladder, name):
    """accelerate starts one process here, and says nothing (huggingface/accelerate#2741)."""
    done = launch(folder, name, "--output_dir", "out/lost", launcher=["--cpu", "--num_processes", "2"])
    assert done.returncode != 0
    assert "2 processes were asked for and 1 started" in done.stderr
    assert "accelerate_configs/cpu_2proc.yaml" in done.stderr
    assert not (folder / "out" / "lost" / "run.json").exists()


def test_mistake_is_told_in_three_lines(folder, ladder):
    command = [sys.executable, REPOSITORY / "recipes" / "sft.py", "--config", REPOSITORY / "recipes" / "nano" / "sft.yaml"]
    done = climb(folder, *command, "--model_name_or_path", "out/nano/nothing", "--output_dir", "out/mistake")
    assert done.returncode == 2
    said = done.stderr[done.stderr.index("error: ") :].strip().splitlines()
    assert said[0] == "error: no model in `out/nano/nothing`" and "fix:" in said[2] and len(said) == 3
    assert "Traceback" not in done.stderr
