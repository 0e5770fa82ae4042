"""What a user may write in a YAML file or on the command line, and what is said about a mistake."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from groundup.command_line import allowed, lost_a_neighbour, out_of_memory, parse
from groundup.configs import DataArguments, ModelArguments, TokenizerArguments
from groundup.errors import InputError
from transformers import TrainingArguments

REPOSITORY = Path(__file__).parents[1]
TASKS = REPOSITORY / "recipes" / "tasks"  # these are lm-evaluation-harness's to read
YAMLS = sorted(path for path in (REPOSITORY / "recipes").rglob("*.yaml") if path.parent != TASKS)
RECIPES = {"evaluate": "evaluate_model"}  # the one recipe whose YAML has another name: `evaluate` is a library's
ON_THE_COMMAND_LINE = {"evaluate": ["--models", "out/nano/sft"]}  # required, and written by recipes/ladder.sh


@dataclass
class Arguments:
    rate: float = 1.0
    maybe_rate: float | None = None
    steps: int = 1
    name: str = "a"
    flag: bool = False
    sizes: dict[str, Any] | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


@pytest.fixture
def config(tmp_path):
    def config(text, name="sft.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return config


def refusal(types, *arguments):
    with pytest.raises(InputError) as caught:
        parse(types, arguments)
    return caught.value


# ---- YAML


def test_yaml_fills_the_classes(config):
    path = config("rate: 0.5\nsizes: {a: 1, b: {c: 2}}\nparts: [{x: 1}]\nwords: [one, two]\nflag: true\ndataset: a.txt\n")
    ours, data = parse([Arguments, DataArguments], ["--config", path])
    assert (ours.rate, ours.sizes, ours.parts) == (0.5, {"a": 1, "b": {"c": 2}}, [{"x": 1}])
    assert (ours.words, ours.flag, ours.steps, data.dataset) == (["one", "two"], True, 1, "a.txt")


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4", "0.0003", "'3e-4'"])
def test_a_float_in_any_spelling(config, written):
    (ours,) = parse([Arguments], ["--config", config(f"rate: {written}\nmaybe_rate: {written}\n")])
    assert ours.rate == ours.maybe_rate == 3e-4


def test_a_whole_number_is_a_float_and_nothing_may_be_nothing(config):
    (ours,) = parse([Arguments], ["--config", config("rate: 2\nmaybe_rate: null\n")])
    assert ours.rate == 2 and ours.maybe_rate is None


def test_unknown_key_names_the_nearest(config):
    path = config("rate: 1.0\nstesp: 3\n")
    assert str(refusal([Arguments], "--config", path)) == (f"unknown key `stesp`\n  where: {path}\n  fix:   did you mean `steps`?")
    assert refusal([Arguments], "--config", config("zzzz: 3\n")).fix == "remove it"


@pytest.mark.parametrize(("text", "line"), [("rate: 1.0\nsteps: 3\nrate: 2.0\n", 3), ("sizes:\n  a: 1\n  a: 2\n", 3)])
def test_key_given_twice_is_named_with_its_line(config, text, line):
    path = config(text)
    error = refusal([Arguments], "--config", path)
    assert error.where == f"{path}:{line}" and error.what.endswith("is given twice")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rate: fast", "`rate: fast` is str, not float or int"),
        ("rate: true", "`rate: True` is bool, not float or int"),
        ("maybe_rate: fast", "`maybe_rate: fast` is str, not float or int or nothing"),
        ("steps: 1.5", "`steps: 1.5` is float, not int"),
        ("steps: '3'", "`steps: 3` is str, not int"),
        ("steps: 3e4", "`steps: 3e4` is str, not int"),
        ("steps: null", "`steps: None` is NoneType, not int"),
        ("flag: 'yes'", "`flag: yes` is str, not bool"),
        ("flag: 1", "`flag: 1` is int, not bool"),
        ("name: 3", "`name: 3` is int, not str"),
        ("sizes: 3", "`sizes: 3` is int, not dict or nothing"),
        ("words: one", "`words: one` is str, not list"),
    ],
)
def test_value_of_the_wrong_type(config, text, what):
    path = config(text)
    error = refusal([Arguments], "--config", path)
    assert (error.what, error.where) == (what, path) and error.fix.startswith("write a value of type ")


@pytest.mark.parametrize(
    "text", ["rate: [1", "rate: 1\n\tsteps: 2", "rate: {{ rate }}", "? [a]\n: 1", "a: b: c", "rate: 1\n---\nsteps: 2"]
)
def test_what_is_no_yaml_is_named(config, text):
    path = config(text)
    assert refusal([Arguments], "--config", path).where.startswith(path)


@pytest.mark.parametrize("text", ["- rate", "rate", "3"])
def test_yaml_that_is_no_mapping(config, text):
    assert refusal([Arguments], "--config", config(text)).what == "a configuration is `key: value` lines"


def test_empty_yaml_is_all_defaults(config):
    assert parse([Arguments], ["--config", config("# nothing\n")]) == (Arguments(),)


def test_missing_file_names_a_near_one(config, tmp_path):
    config("rate: 1.0")
    assert str(refusal([Arguments], "--config", f"{tmp_path}/stf.yaml")) == (
        f"no such configuration file\n  where: {tmp_path}/stf.yaml\n  fix:   did you mean {tmp_path}/sft.yaml?"
    )
    assert refusal([Arguments], "--config", "nowhere/at/all.yaml").fix == "check the path"
    assert refusal([Arguments], "--config").what == "`--config` needs a file"


def test_environment_of_a_yaml(config, monkeypatch):
    monkeypatch.setenv("GROUNDUP_TEST", "before")
    parse([Arguments], ["--config", config("env: {GROUNDUP_TEST: 3}\n")])
    assert os.environ["GROUNDUP_TEST"] == "3"
    assert refusal([Arguments], "--config", config("env: GROUNDUP_TEST=3\n")).what == "`env` is no mapping"


# ---- Command line


def test_command_line_beats_the_file(config):
    path = config("rate: 0.5\nsteps: 3\nflag: true\nsizes: {a: 1}\nwords: [one]\n")
    line = ["--rate", "0.25", "--flag", "false", "--sizes", '{"b": 2}', "--words", "two", "three"]
    for arguments in (["--config", path, *line], [*line, "--config", path]):
        (ours,) = parse([Arguments], arguments)
        assert (ours.rate, ours.steps, ours.flag) == (0.25, 3, False)
        assert (ours.sizes, ours.words) == ({"b": 2}, ["two", "three"])


def test_equals_signs(config):
    (ours,) = parse([Arguments], [f"--config={config('rate: 0.5')}", "--steps=7", "--name=a=b"])
    assert (ours.rate, ours.steps, ours.name) == (0.5, 7, "a=b")


def test_mappings_on_the_command_line_are_json():
    (ours,) = parse([Arguments], ["--sizes", '{"a": 1, "b": [1.5, true]}', "--parts", '[{"name": "x", "weight": 2}]'])
    assert ours.sizes == {"a": 1, "b": [1.5, True]} and ours.parts == [{"name": "x", "weight": 2}]
    (ours,) = parse([Arguments], ['--sizes={"a": 1}'])
    assert ours.sizes == {"a": 1}
    assert refusal([Arguments], "--sizes", "{a: [").what == "`--sizes {a: [` is not JSON or YAML"
    assert refusal([Arguments], "--sizes", "3").what == "`sizes: 3` is int, not dict or nothing"


def test_dashes_are_underscores():
    (ours,) = parse([Arguments], ["--maybe-rate", "2"])
    assert ours.maybe_rate == 2
    (model,) = parse([ModelArguments], ["--tokenizer-path", "a/b", "--model-config", '{"hidden_size": 64}'])
    assert model.model_config == {"hidden_size": 64}


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["--stesp", "3"], "unknown argument `--stesp`", "did you mean `--steps`?"),
        (["--zzzz"], "unknown argument `--zzzz`", "see --help"),
        (["--stesp=3"], "unknown argument `--stesp`", "did you mean `--steps`?"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'", "see --help"),
        (["--steps"], "argument --steps: expected one argument", "see --help"),
        (["stray"], "", ""),
    ],
)
def test_mistake_on_the_command_line(arguments, what, fix):
    error = refusal([Arguments], *arguments)
    assert what in error.what and fix in error.fix


def test_missing_argument():
    assert "--output_dir" in refusal([TokenizerArguments]).what


def test_types_that_are_judged():
    assert allowed(float) == {float, int} and allowed(float | None) == {float, int, type(None)}
    assert allowed(dict[str, Any]) == {dict} and allowed(list[str] | str) == {list, str}
    assert allowed(Any) is None and allowed(Path | None) is None


# ---- Recipes


@pytest.fixture
def without_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def types_of(stem):
    """The classes that the recipe that a YAML is for asks for."""
    path = REPOSITORY / "recipes" / f"{RECIPES.get(stem, stem)}.py"
    spec = importlib.util.spec_from_file_location(f"recipe_of_{stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks its annotations up
    spec.loader.exec_module(module)
    return list(get_type_hints(module.main).values())


def test_each_rung_has_a_nano_yaml():
    others = {"report", "plan", "merge", "compare", "push", "export", "chat"}
    recipes = {path.stem for path in (REPOSITORY / "recipes").glob("*.py")} - others
    assert {RECIPES.get(path.stem, path.stem) for path in YAMLS if path.parent.name == "nano"} >= recipes


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_parses_with_the_classes_of_its_recipe(path, tmp_path, without_accelerator):
    types = types_of(path.stem)
    arguments = parse(types, ["--config", str(path), *ON_THE_COMMAND_LINE.get(path.stem, [])])
    assert [type(argument) for argument in arguments] == types
    for key, value in yaml.safe_load(path.read_text()).items():  # and each value arrives
        (found,) = {repr(getattr(argument, key)) for argument in arguments if hasattr(argument, key)}
        if key == "report_to":
            assert found == repr([] if value == "none" else [value])
        elif key == "accelerator_config":  # becomes an object, with accelerate's other settings beside those given
            (training,) = [argument for argument in arguments if isinstance(argument, TrainingArguments)]
            assert value.items() <= training.accelerator_config.to_dict().items()
        else:
            assert repr(value) == found or f"'{value}'" in found or float(value) == float(found), key
    for argument in arguments:
        if isinstance(argument, TrainingArguments):
            assert argument.use_cpu


def test_bf16_parses_where_there_is_no_accelerator(config, tmp_path, without_accelerator):
    for stem in ("pretrain", "sft", "reward", "ppo", "grpo"):
        text = (REPOSITORY / "recipes" / "nano" / f"{stem}.yaml").read_text()
        assert "bf16: false" in text
        parsed = parse(types_of(stem), ["--config", config(text.replace("bf16: false", "bf16: true"))])
        (training,) = [argument for argument in parsed if isinstance(argument, TrainingArguments)]
        assert training.bf16 and training.use_cpu


def test_use_cpu_is_left_alone_where_it_is_said_or_there_is_an_accelerator(config, monkeypatch):
    @dataclass
    class Device:
        use_cpu: bool = False

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert parse([Device], [])[0].use_cpu
    assert not parse([Device], ["--use_cpu", "false"])[0].use_cpu
    assert not parse([Device], ["--config", config("use_cpu: false")])[0].use_cpu
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not parse([Device], [])[0].use_cpu


def test_recipe_says_the_mistake_in_three_lines_and_exits_2(config, tmp_path):
    path = config("dataset: a.txt\nvocab_szie: 512\noutput_dir: out\n", "tokenizer.yaml")
    command = [sys.executable, str(REPOSITORY / "recipes" / "tokenizer.py"), "--config", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(f"error: unknown key `vocab_szie`\n  where: {path}\n  fix:   did you mean `vocab_size`?\n")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.yaml"]


# ---- How it ends

GLOO = "[pair.cc:537] Read error [127.0.0.1]:43942: Connection {} by peer. This is typically caused by a remote worker hanging"


@pytest.mark.parametrize(
    ("error", "world", "lost"),
    [
        (RuntimeError(GLOO.format("reset")), "2", True),
        (RuntimeError(GLOO.format("closed")), "2", True),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed."), "2", True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."), "2", True),
        (RuntimeError(GLOO.format("reset")), "1", False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "2", False),
        (ConnectionResetError("Connection reset by peer"), "2", False),  # the Hub, say
    ],
)
def test_consequences_are_told_from_causes(error, world, lost, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world)
    assert lost_a_neighbour(error) is lost


@pytest.mark.parametrize(
    ("batch", "accumulation", "fix"),
    [
        (8, 1, "write `per_device_train_batch_size: 4` and `gradient_accumulation_steps: 2`, the same 8 rows a step"),
        (9, 2, "write `per_device_train_batch_size: 3` and `gradient_accumulation_steps: 6`, the same 18 rows a step"),
        (1, 4, "a shorter `max_length`"),
    ],
)
def test_memory_that_ran_out_comes_with_a_split_that_needs_less(batch, accumulation, fix):
    args = SimpleNamespace(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, output_dir="out")
    told = out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), (object(), args))
    assert told.fix.startswith(fix)
    assert out_of_memory(RuntimeError("something else"), (args,)) is None
    assert out_of_memory(MemoryError(), (args,)) is not None


def test_curves_are_kept_unless_told_otherwise(config, monkeypatch, tmp_path, capsys):
    training = partial(parse, [TrainingArguments])
    where = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    assert training(where)[0].report_to == ["trackio"]
    assert training([*where, "--report_to", "none"])[0].report_to == []
    assert training([*where, "--config", config("report_to: none")])[0].report_to == []
    assert training([*where, "--config", config("report_to: [tensorboard, wandb]")])[0].report_to == ["tensorboard", "wandb"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("groundup.command_line.find_spec", lambda name: None)
    assert training(where)[0].report_to == []
    assert capsys.readouterr().err == "no curves are kept: pip install trackio, or write `report_to: none`\n"
