"""Loading never runs what is in a checkpoint, a model or rows of somebody's: the canary that any of it would leave is not there."""

import json
import pickle
import shutil
import zipfile

import pytest
import torch
from groundup.checkpoint import damage, seal
from groundup.configs import DataArguments
from groundup.data import load_conversations
from groundup.errors import InputError
from recipes.miniature import interrupt, run_recipe
from safetensors.torch import load_file

PICKLES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"]


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file; and whoever is asked whether to run something says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(path)))
    assert path.is_file()  # it would sing
    path.unlink()
    yield path
    assert not path.exists(), "what was in there has been run"


def torch_save(content, path):
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())


def plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def at_step_two(rungs, tmp_path):
    directory = interrupt(rungs["sft"], tmp_path / "sft", 2)
    return directory, directory / "checkpoint-2"


@pytest.mark.parametrize("name", PICKLES)
def test_pickle_in_a_checkpoint_is_damage(name, canary, rungs, tmp_path):
    directory, checkpoint = at_step_two(rungs, tmp_path)
    torch_save({"state": Canary(canary)}, checkpoint / name)
    if damage(checkpoint) is None:  # a file that was never sealed
        assert name == "scaler.pt"
        run_recipe("sft", directory, **rungs.settings("sft"))
        return
    with pytest.raises(InputError, match=f"no checkpoint is whole: checkpoint-2: {name} "):
        run_recipe("sft", directory, **rungs.settings("sft"))


@pytest.mark.parametrize("write", [torch_save, plain_pickle])
@pytest.mark.parametrize("name", PICKLES)
def test_pickle_in_a_sealed_checkpoint_is_not_run(name, write, canary, rungs, tmp_path):
    """Of somebody who can seal: what the run does not need to go on is not read, and what it needs is refused."""
    directory, checkpoint = at_step_two(rungs, tmp_path)
    write({"state": Canary(canary)}, checkpoint / name)
    seal(checkpoint)
    settings = rungs.settings("sft")
    if name in ("training_args.bin", "scaler.pt"):
        run_recipe("sft", directory, **settings)
        return
    with pytest.raises(InputError) as refused:
        run_recipe("sft", directory, **settings)
    assert name in refused.value.what and refused.value.what.endswith("asks to run `exec`, which is not run")
    assert refused.value.where == str(checkpoint) and refused.value.fix
    assert not (directory / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "adapter_model.bin"])
def test_pickled_weights_beside_the_safe_ones_are_not_read(name, canary, rungs, tmp_path):
    directory, checkpoint = at_step_two(rungs, tmp_path)
    plain_pickle({"weight": Canary(canary)}, checkpoint / name)
    seal(checkpoint)
    trained = run_recipe("sft", directory, **rungs.settings("sft"))
    whole = rungs["sft"].weights()
    assert all(torch.equal(value, whole[key]) for key, value in trained.weights().items())


def copy_of_model(rungs, tmp_path, name="sft"):
    directory = tmp_path / "model"
    shutil.copytree(rungs[name].directory, directory, ignore=shutil.ignore_patterns("checkpoint-*", "run.json"))
    return directory


@pytest.mark.parametrize("write", [torch_save, plain_pickle])
def test_pickled_weights_in_place_of_the_safe_ones_are_refused(write, canary, rungs, tmp_path):
    model = copy_of_model(rungs, tmp_path)
    (model / "model.safetensors").unlink()
    write({"weight": Canary(canary)}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match="asks to run `exec`, which is not run") as refused:
        run_recipe("sft", tmp_path / "out", **rungs.settings("sft") | {"model_name_or_path": str(model)})
    assert refused.value.where == "model_name_or_path"


def bring_code(model, canary, architecture="own", tokenizer=False):
    """A model or tokenizer that asks for Python beside it, as those of the Hub do that transformers does not know."""
    (model / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    name = "tokenizer_config.json" if tokenizer else "config.json"
    config = json.loads((model / name).read_text())
    if tokenizer:
        config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    else:
        kinds = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel")
        config |= {"model_type": architecture, "auto_map": {"AutoConfig": "own.Own"} | dict.fromkeys(kinds, "own.Model")}
    (model / name).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "what", "where"),
    [
        ("sft", {"model_name_or_path": "MODEL"}, "model_name_or_path"),
        ("reward", {"model_name_or_path": "MODEL"}, "model_name_or_path"),
        ("grpo", {"rewards": [{"model": "MODEL"}]}, "rewards"),
        ("ppo", {"critic_model_name_or_path": "MODEL"}, "model_name_or_path"),
    ],
)
def test_code_beside_a_model_is_not_run(name, what, where, canary, rungs, tmp_path):
    model = copy_of_model(rungs, tmp_path, "reward" if name in ("grpo", "ppo") else "sft")
    bring_code(model, canary)
    what = json.loads(json.dumps(what).replace("MODEL", str(model)))
    with pytest.raises(InputError, match=f"the model `{model}` brings Python code of its own, which is not run") as refused:
        run_recipe(name, tmp_path / "out", **rungs.settings(name) | what)
    assert refused.value.where == where


def test_code_beside_a_model_that_transformers_knows_is_not_needed(canary, rungs, tmp_path):
    model = copy_of_model(rungs, tmp_path)
    bring_code(model, canary, architecture="qwen3")
    run_recipe("sft", tmp_path / "out", **rungs.settings("sft") | {"model_name_or_path": str(model), "max_steps": 1})


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_code_beside_a_tokenizer_is_not_run(name, canary, rungs, tmp_path):
    model = copy_of_model(rungs, tmp_path)
    bring_code(model, canary, tokenizer=True)
    key = "tokenizer_path" if name == "pretrain" else "model_name_or_path"
    try:
        run_recipe(name, tmp_path / "out", **rungs.settings(name) | {key: str(model), "max_steps": 1, "save_strategy": "no"})
    except InputError as refused:
        assert "brings Python code of its own, which is not run" in refused.what and refused.where == key


def test_refusal_is_three_lines_and_status_2(canary, rungs, start_recipe, tmp_path):
    """transformers would ask on standard input, wait for an answer, and end with its own traceback."""
    model = copy_of_model(rungs, tmp_path)
    bring_code(model, canary)
    recipe = start_recipe("sft", tmp_path / "out", rungs.settings("sft") | {"model_name_or_path": str(model)})
    assert recipe.wait() == 2 and "Traceback" not in recipe.stderr and "[y/N]" not in recipe.stdout + recipe.stderr
    assert recipe.stderr.startswith(f"error: the model `{model}` brings Python code of its own, which is not run\n")
    assert recipe.stderr.count("\n") == 3 and not (tmp_path / "out").exists()


def test_script_in_a_directory_of_rows_is_not_run(canary, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    with pytest.raises(InputError, match="no file of a kind that can be read"):
        load_conversations(DataArguments(dataset=str(rows)))
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    (rows / "train.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert len(load_conversations(DataArguments(dataset=str(rows))).rows) == 1
    with pytest.raises(InputError):
        load_conversations(DataArguments(dataset=str(rows / "rows.py")))


def test_what_a_stage_hands_over_is_no_pickle(rungs):
    """So that whoever is given a model need not trust it: safetensors and JSON; the rest was the run's own."""
    for name in ("sft", "reward"):
        directory = rungs[name].directory
        load_file(directory / "model.safetensors")
        assert [path.name for path in directory.iterdir() if path.suffix in (".pt", ".pth", ".bin", ".pkl")] == [
            "training_args.bin"
        ]
