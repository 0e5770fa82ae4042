"""accelerate_configs/ and recipes/cluster/: what they start, read by accelerate's own launcher, by bash, and by the recipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import launch as launching
from groundup.command_line import parse
from recipes.miniature import load_recipe

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "recipes" / "cluster").iterdir())
WORLDS = {  # config -> processes, machines
    "cpu": (1, 1),
    "cpu_2proc": (2, 1),
    "single_gpu": (1, 1),
    "ddp": (8, 1),
    "fsdp2": (8, 1),
    "deepspeed_zero3": (8, 1),
    "multi_node": (16, 2),
}


@pytest.fixture
def launcher(monkeypatch):
    """What `accelerate launch WORDS` would run with, by accelerate's own reading."""
    monkeypatch.setattr(sys, "argv", ["accelerate"])

    def read(*words):
        parser = launch_command_parser()
        return _validate_launch_command(parser.parse_args([*map(str, words)]))[0]

    return read


# ---- accelerate_configs/


def test_every_config_is_expected():
    assert {path.stem for path in CONFIGS} == set(WORLDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_launcher_knows_every_key(path, launcher):
    read = launcher("--config_file", path, "recipes/pretrain.py", "--config", "x.yaml")
    processes, machines = WORLDS[path.stem]
    assert read.num_processes == processes and read.training_script == "recipes/pretrain.py"
    assert read.training_script_args == ["--config", "x.yaml"]
    settings = yaml.safe_load(path.read_text())
    assert settings["num_machines"] == machines
    for section in ("fsdp_config", "deepspeed_config"):  # accelerate sets whatever stands there on its arguments, known or not
        for key, value in settings.get(section, {}).items():
            assert getattr(read, key) == value
            assert key in vars(launch_command_parser().parse_args(["x.py"])), f"accelerate does not know `{key}`"
    kinds = {"fsdp2": "use_fsdp", "deepspeed_zero3": "use_deepspeed", "ddp": "multi_gpu", "multi_node": "multi_gpu"}
    kinds |= {"cpu_2proc": "multi_gpu"}
    for kind in ("multi_gpu", "use_fsdp", "use_deepspeed"):
        assert bool(getattr(read, kind)) == (kinds.get(path.stem) == kind)


def test_fsdp2_arrives_in_the_processes(launcher, monkeypatch):
    path = ROOT / "accelerate_configs" / "fsdp2.yaml"
    environment = launching.prepare_multi_gpu_env(launcher("--config_file", path, "x.py"))
    assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
    for name in list(environment):
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, environment[name])
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT" and plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


# ---- recipes/cluster/


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_bash_and_says_how_it_is_used(path, tmp_path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    told = subprocess.run(["bash", path], capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 2 and path.name in told.stdout


@pytest.fixture
def slurm(tmp_path):
    """A checkout's cluster scripts in a world where srun runs a task a node here, and launchers write down what they were given."""
    for name in ("recipes", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = {
        "srun": 'shift\nfor node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@" & done; wait -n',
        "scontrol": 'echo "$*" >> said/scontrol\n[ "$1" != show ] || printf "node1\\nnode2\\n"',
        "accelerate": 'printf "%s\\n" "$@" > "said/accelerate$SLURM_NODEID"; exec sleep "${NAP:-0}"',
        "python": 'printf "%s\\n" "$@" > said/python',
        "hf": 'printf "%s\\n" "$@" > said/hf',
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "said").mkdir()
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script, *words, **environment):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        settings = {"PATH": path, "SLURM_JOB_ID": "1234567", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "8", **environment}
        command = ["bash", tmp_path / "recipes" / "cluster" / script, *words]
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | settings, stdout=open(tmp_path / "said" / "out", "w"))

    run.said = lambda name: (tmp_path / "said" / name).read_text().splitlines()
    run.path = tmp_path
    return run


def recipe_arguments(name, words):
    from typing import get_type_hints

    recipe = load_recipe(name)
    types = [kind for key, kind in get_type_hints(recipe.main).items() if key != "return"]
    return parse(types, words)


@pytest.mark.parametrize(("nodes", "gpus", "config"), [("1", "8", "ddp"), ("2", "8", "multi_node"), ("1", "1", "single_gpu")])
def test_training_job_starts_a_launcher_a_node(slurm, launcher, nodes, gpus, config, monkeypatch):
    words = ["pretrain", "recipes/base/pretrain.yaml", "--run_name", "two words"]
    job = slurm("train.sbatch", *words, SLURM_JOB_NUM_NODES=nodes, SLURM_GPUS_ON_NODE=gpus, SLURM_JOB_NODELIST="node[1-2]")
    assert job.wait(60) == 0
    monkeypatch.chdir(ROOT)
    for node in range(int(nodes)):
        read = launcher(*slurm.said(f"accelerate{node}")[1:])
        assert read.config_file == f"accelerate_configs/{config}.yaml"
        assert (read.num_processes, read.num_machines, read.machine_rank) == (int(nodes) * int(gpus), int(nodes), node)
        if nodes == "2":
            assert (read.main_process_ip, read.main_process_port, read.rdzv_backend) == ("node1", 24567, "c10d")
            environment = launching.prepare_multi_gpu_env(read)
            assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16" and read.rdzv_endpoint == "node1:24567"
        assert read.training_script == "recipes/pretrain.py"
        *_, training_args, _ = recipe_arguments("pretrain", read.training_script_args)
        assert training_args.run_name == "two words"


def test_training_job_that_is_signalled_goes_back_into_the_queue(slurm):
    job = slurm("train.sbatch", "sft", "recipes/base/sft.yaml", NAP="20")
    while not (slurm.path / "said" / "accelerate0").exists():
        assert job.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    job.wait(60)
    assert slurm.said("scontrol") == ["requeue 1234567"]
    assert slurm.said("out") == ["train: back into the queue (restart 1)"]


def test_training_job_that_fails_is_not_requeued(slurm):
    (slurm.path / "bin" / "accelerate").write_text("#!/usr/bin/env bash\nexit 3\n")
    assert slurm("train.sbatch", "sft", "recipes/base/sft.yaml").wait(60) == 3
    assert not (slurm.path / "said" / "scontrol").exists()


def test_job_of_an_array_prepares_its_shard(slurm):
    words = ["prepare.sbatch", "recipes/base/prepare.yaml", "--seed", "3"]
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MAX": "99"}
    assert slurm(*words, **array).wait(60) == 0
    recipe, *arguments = slurm.said("python")
    assert recipe == "recipes/prepare.py" and arguments[2:] == ["--shard", "5/100", "--seed", "3"]
    assert recipe_arguments("prepare", arguments)[-1].shards == 100  # refuses another number than the YAML's
    assert slurm(*words, "--shards", "1", **array, SHARDS="32").wait(60) == 0
    assert "5/32" in slurm.said("python")


LAUNCH = "accelerate launch --config_file accelerate_configs/"


@pytest.mark.parametrize(
    ("flavor", "rung", "launch"),
    [
        ("h200x8", "pretrain", f"{LAUNCH}ddp.yaml --num_processes 8 recipes/pretrain.py"),
        ("a100-large", "grpo", f"{LAUNCH}single_gpu.yaml --num_processes 1 recipes/grpo.py"),
        ("cpu-xl", "prepare", "python recipes/prepare.py"),
    ],
)
def test_rented_job_is_one_that_the_hub_would_take(flavor, rung, launch):
    """By the Hub's own command line, which checks flavors, volumes and the rest before it would submit."""
    words = ["bash", "recipes/cluster/hf_jobs.sh", "me/groundup", flavor, rung, f"recipes/base/{rung}.yaml", "--seed", "1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # huggingface_hub brings `hf`
    environment = os.environ | {"DRY_RUN": "1", "HF_TOKEN": "hf_none", "NO_COLOR": "1", "PATH": path}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"exec {launch} --config recipes/base/{rung}.yaml --seed 1" in done.stdout
    assert f"flavor    {flavor}" in done.stdout and "not submitted" in done.stdout
    assert "hf_none" not in done.stdout


def test_rented_job_on_processors_does_not_train():
    words = ["bash", "recipes/cluster/hf_jobs.sh", "me/groundup", "cpu-xl", "pretrain", "recipes/base/pretrain.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"DRY_RUN": "1"})
    assert done.returncode == 2 and "error: pretrain needs a GPU" in done.stderr


def test_signals_are_asked_of_slurm():
    text = (ROOT / "recipes" / "cluster" / "train.sbatch").read_text()
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:USR1@120" in directives and "#SBATCH --requeue" in directives
    # Slurm reads its directives before the first command only
    assert text.index("set -euo") > text.rindex("#SBATCH")
    assert json.dumps(directives).count("--open-mode=append") == 1
