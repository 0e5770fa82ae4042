"""recipes/plan.py: every YAML of the repository is planned, without data, network or GPU; and what it prints."""

import json
import os
import subprocess
import sys

import pytest
from groundup.errors import InputError
from groundup.hardware import named_device
from groundup.plan import SCHEMES, plan
from groundup.workload import TYPES, read_workload

from recipes.miniature import REPOSITORY, load_recipe

SCALES = {"nano": 1, "small": 1, "real": 1, "base": 8}  # and the devices that its YAML are written for
FOUND = [
    (scale, rung)
    for scale in SCALES
    for rung in TYPES
    if (REPOSITORY / "recipes" / scale / f"{rung}.yaml").is_file()  # tokenizer and prepare say what they can
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What a demo left in the checkout is not looked at."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("scale", "rung"), FOUND, ids=[f"{scale}-{rung}" for scale, rung in FOUND])
def test_every_yaml_is_planned(scale, rung):
    world = SCALES[scale]
    load = read_workload(str(REPOSITORY / "recipes" / scale / f"{rung}.yaml"), world=world)
    found = plan(load, named_device("H100"), "DDP" if world > 1 else None)
    assert found["rung"] == rung and json.loads(json.dumps(found)) == found
    if rung in ("tokenizer", "prepare"):
        return
    millions = {"nano": (0.8, 1), "real": (6, 8), "small": (105, 130), "base": (450, 550)}[scale]
    assert millions[0] * 1e6 < found["parameters"] < millions[1] * 1e6
    memory = found["memory"]
    assert sum(memory["parts"].values()) == memory["total"] > 4 * found["parameters"]
    assert set(memory["schemes"]) == (set(SCHEMES) if world > 1 else set())
    assert found["disk"]["checkpoints"] >= 4 * found["trained"]
    if rung == "pretrain":
        assert found["tokens"] == found["steps"] * found["batch_tokens"] and found["seconds"] > 0
        assert memory["lengths_counted"] and memory["total"] < memory["device"]
    else:
        assert found["seconds"] is None or found["seconds"] > 0


def run(*arguments, **environment):
    command = [sys.executable, str(REPOSITORY / "recipes" / "plan.py"), *map(str, arguments)]
    environment = {"COLUMNS": "150", **os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_ladder_is_summed(ladder):
    done = run("--config", ladder, "--gpu", "H100", "--price", "3600")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "on 1 x H100, one device"
    rungs = [line.split()[0] for line in lines[2:7]]
    assert rungs == ["tokenizer", "pretrain", "sft", "reward", "ppo"]
    assert lines[7].startswith("what is known") and "$" in lines[7]  # the tokenizer's text is not here
    assert "activations" in done.stdout and "assumed: a vocabulary of 1000, from tokenizer.yaml" in done.stdout


def test_the_recipe_s_own_options_are_taken(ladder, capsys):
    done = run(
        "--config", ladder / "pretrain.yaml", "--gpu", "A100", "--count", "4", "--scheme", "FSDP2", "--json", "--max_steps", "7"
    )
    (found,) = json.loads(done.stdout)
    assert (found["steps"], found["devices"], found["scheme"], found["device"]) == (7, 4, "FSDP2", "A100-80GB")


def test_what_does_not_fit_is_an_error_after_the_table(ladder):
    done = run("--config", ladder / "pretrain.yaml", "--gpu", "H100", "--memory", "0.5")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pretrain: " in done.stdout  # by part
    assert "error: pretrain will not fit: it needs about" in done.stderr and "fix:" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--config pretrain.yaml --gpu H1", "`--gpu H1` is not in the table"),
        ("--config nothing.yaml", "no such configuration file"),
        ("--config nothing.yaml --rung sft", "no such configuration file"),
        ("--config empty", "no rung's YAML in this directory"),
        ("--config broken.yaml", "not valid YAML"),
        ("--config odd.yaml", "unknown key `max_stepz`"),
        ("--config pretrain.yaml --gpu H100 --max_stepz 3", "did you mean `--max_steps`?"),
        ("--config alone/sft.yaml --gpu H100", "no model in `out/t/pretrain`"),
        ("--config pretrain.yaml --gpu H100 --count 0", "`--count 0`"),
        ("--config sft.yaml reward.yaml --gpu H100 --rows -5", "`--rows -5`"),
    ],
)
def test_mistakes(ladder, monkeypatch, capsys, line, message):
    monkeypatch.chdir(ladder)
    (ladder / "empty").mkdir()
    (ladder / "alone").mkdir()
    (ladder / "alone" / "sft.yaml").write_text((ladder / "sft.yaml").read_text())
    (ladder / "broken.yaml").write_text("a: [1")
    (ladder / "odd.yaml").write_text("tokenizer_path: x\nmax_stepz: 3\n")
    recipe = load_recipe("plan")
    with pytest.raises(InputError) as refused:
        recipe.main(*recipe.read_options(line.split()))
    assert message in str(refused.value) and capsys.readouterr().out == ""


def test_a_run_writes_down_what_was_foreseen_and_what_it_took(rungs):
    for rung in ("pretrain", "ppo"):
        entry = rungs[rung].record
        assert entry["plan"]["steps"] == entry["steps"] and entry["plan"]["parameters"] == entry["parameters"]
        assert entry["peak_memory_bytes"] > entry["plan"]["memory"]["parts"]["weights"]
    assert rungs["pretrain"].record["plan"]["tokens"] == rungs["pretrain"].record["tokens"]
