import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from groundup import record
from groundup.errors import InputError
from groundup.order import Order
from groundup.shards import read_manifest
from safetensors.torch import load_file

from recipes.miniature import REPOSITORY, interrupt, run_recipe


def test_llama_trains_whole(rungs, tmp_path):
    settings = {**rungs.settings("pretrain"), "model_type": "llama", "random_init_dir": str(tmp_path / "random")}
    trained = run_recipe("pretrain", tmp_path / "llama", **{**settings, "max_steps": 2})
    after, before = trained.weights(), load_file(tmp_path / "random" / "model.safetensors")
    assert after.keys() == before.keys() and len(after) == 2 * 9 + 2
    assert not [key for key in after if torch.equal(before[key], after[key])]
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(trained.directory).eval()
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trained.trainer.model.eval()(ids).logits)


def test_four_batches_of_one_are_one_batch_of_four(rungs, tmp_path):
    """Gradient accumulation changes the memory that a step takes, not the step."""
    # SGD, because AdamW divides by the size of the gradient and Muon drops it: neither would notice a wrong scale.
    settings = {**rungs.settings("pretrain"), "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    settings = {k: v for k, v in settings.items() if k != "random_init_dir"}
    at_once, in_parts = (
        run_recipe(
            "pretrain",
            tmp_path / str(batch),
            **{
                **settings,
                "random_init_dir": str(tmp_path / f"random{batch}"),
                "muon_learning_rate": "null",
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 4 // batch,
            },
        )
        for batch in (4, 1)
    )
    assert at_once.record["tokens"] == in_parts.record["tokens"] == 4 * 4 * 64
    start = load_file(tmp_path / "random1" / "model.safetensors")
    for key, weight in in_parts.weights().items():
        moved = (weight - start[key]).norm()
        assert moved > 0
        assert (weight - at_once.weights()[key]).norm() < 1e-3 * moved, key


def test_random_weights_are_kept_as_a_stage(rungs):
    import json

    rungs["pretrain"]
    entry = json.loads((rungs.root / "random" / "run.json").read_text())
    assert (entry["rung"], entry["status"]) == ("random", "finished")
    assert "steps" not in entry
    assert (rungs.root / "random" / "README.md").is_file()


def test_held_out_loss_is_measured(rungs):
    metrics = rungs["pretrain"].record["metrics"]
    assert 0 < metrics["eval_bits_per_byte"] < metrics["eval_loss"]


# ---- the tokens


def test_rows_of_the_run_are_on_record(rungs):
    trained = rungs["pretrain"]
    prepared = trained.record["prepared"]
    assert prepared == read_manifest(trained.directory / "tokens")
    assert prepared["splits"]["train"]["documents"] == 400 and prepared["splits"]["held_out"]["documents"] == 8
    assert prepared["tokenizer_sha256"] and "sha256" in prepared["splits"]["train"]
    assert [source["name"] for source in trained.record["data"]] == [trained.settings[k] for k in ("dataset", "eval_dataset")]


def test_prepared_tokens_are_trained_on(rungs, world, tmp_path):
    source = {"dataset": str(world / "documents.jsonl"), "eval_dataset": str(world / "eval_documents.jsonl")}
    tokenizer = {"tokenizer_path": rungs.settings("pretrain")["tokenizer_path"]}
    run_recipe("prepare", tmp_path / "tokens", **source, **tokenizer, max_length=64, decontaminate_against="null")
    manifest = read_manifest(tmp_path / "tokens")
    assert manifest["packing"] == "best_fit"
    settings = {key: value for key, value in rungs.settings("pretrain").items() if key != "max_eval_rows"}
    settings |= {
        "dataset": str(tmp_path / "tokens"),
        "eval_dataset": str(tmp_path / "tokens"),
        "random_init_dir": str(tmp_path / "random"),
    }
    trained = run_recipe("pretrain", tmp_path / "base", **settings)
    assert trained.record["prepared"] == manifest
    assert trained.record["data"] == manifest["sources"]
    assert 0 < trained.record["metrics"]["eval_bits_per_byte"] < trained.record["metrics"]["eval_loss"]
    assert not (tmp_path / "base" / "tokens").exists()
    with pytest.raises(InputError, match="packed into rows of 64 tokens, read as rows of 32"):
        run_recipe("pretrain", tmp_path / "other", **{**settings, "max_length": 32})


def test_packed_documents_are_trained_on_and_resumed(rungs, tmp_path):
    settings = {**rungs.settings("pretrain"), "packing": "best_fit", "random_init_dir": str(tmp_path / "random")}
    whole = run_recipe("pretrain", tmp_path / "whole", **settings)
    assert whole.record["prepared"]["packing"] == "best_fit"
    assert 0 < whole.record["metrics"]["eval_bits_per_byte"] < whole.record["metrics"]["eval_loss"]
    resumed = run_recipe("pretrain", interrupt(whole, tmp_path / "resumed", 2), **settings)
    assert all(torch.equal(value, resumed.weights()[key]) for key, value in whole.weights().items())


# ---- two real processes

RECORDING = """
import importlib.util, os, sys
from groundup.shards import TokenShards

read = TokenShards.__getitem__

def record(self, row):
    if self.names[0].startswith("train"):
        with open(f"{os.environ['ROWS']}.{os.environ.get('RANK', '0')}", "a") as file:  # in the order they are read
            print(row, file=file)
    return read(self, row)

TokenShards.__getitem__ = record
spec = importlib.util.spec_from_file_location("recipe", sys.argv.pop(1))
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
recipe.run(recipe.main)
"""


def launch(directory, config, settings):
    """The recipe through the real launcher; rows as each rank read them, the losses, and what was said."""
    directory.parent.mkdir(exist_ok=True)
    script = directory.parent / "recording.py"
    script.write_text(RECORDING)
    environment = {**os.environ, "ROWS": f"{directory}.rows", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        environment.pop(name, None)
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file"]
    command += [str(REPOSITORY / "accelerate_configs" / config), str(script), str(REPOSITORY / "recipes" / "pretrain.py")]
    command += ["--config", str(REPOSITORY / "recipes" / "nano" / "pretrain.yaml")]
    for key, value in {**settings, "output_dir": str(directory)}.items():
        command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    paths = sorted(directory.parent.glob(f"{directory.name}.rows.*"))
    return done, [[int(line) for line in path.read_text().split()[1:]] for path in paths]  # the first is a look at what rows hold


def losses(directory):
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in history if "loss" in line]


@pytest.mark.slow
def test_the_order_of_rows_is_that_of_any_number_of_processes(rungs, tmp_path):
    """Four rows a step: one by one, at once, and two by each of two processes; and one run that was both."""
    common = {**rungs.settings("pretrain"), "muon_learning_rate": "null", "learning_rate": 1e-3, "seed": 5}
    layouts = {"parts": (1, 4, "cpu.yaml"), "whole": (4, 1, "cpu.yaml"), "two": (2, 1, "cpu_2proc.yaml")}
    found = {}
    for name, (batch, accumulation, config) in layouts.items():
        settings = {**common, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        settings["random_init_dir"] = str(tmp_path / f"random-{name}")
        done, rows = launch(tmp_path / name, config, settings)
        assert done.returncode == 0, done.stderr[-3000:]
        entry = record.read(tmp_path / name)
        assert entry["tokens"] == 4 * 4 * 64 and entry["world_size"] == len(rows) == (2 if name == "two" else 1)
        found[name] = rows
    shards = read_manifest(tmp_path / "whole" / "tokens")
    expected = Order(shards["splits"]["train"]["tokens"] // 64, 5)[np.arange(16)].tolist()
    assert found["parts"] == found["whole"] == [expected]
    first, second = found["two"]
    assert [sorted(first[n : n + 2] + second[n : n + 2]) for n in range(0, 8, 2)] == [
        sorted(expected[n : n + 4]) for n in range(0, 16, 4)
    ]
    assert len(set(losses(tmp_path / "whole"))) == 4
    for name in ("parts", "two"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)

    # an interrupted run of one process goes on with two
    trained = type("Trained", (), {"directory": tmp_path / "whole"})
    both = interrupt(trained, tmp_path / "both", 2)
    settings = {**common, "per_device_train_batch_size": 2, "random_init_dir": str(tmp_path / "random-whole")}
    done, rows = launch(both, "cpu_2proc.yaml", settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from" in done.stdout
    assert sorted(rows[0] + rows[1]) == sorted(expected[8:])
    assert losses(both) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)

    # and is refused when a step would become another
    other = interrupt(trained, tmp_path / "other", 2)
    done, _ = launch(other, "cpu_2proc.yaml", {**settings, "per_device_train_batch_size": 4})
    assert done.returncode != 0
    assert "an interrupted run of 4 rows a step (4 x 1 x 1), and this one has 8 rows a step (4 x 1 x 2)" in done.stderr
