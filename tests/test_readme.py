"""A sentence, path or command of README that nothing touches will rot: these read it and check."""

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from groundup.command_line import parse
from groundup.configs import DataArguments, PrepareArguments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LAUNCHES = re.findall(r"^accelerate launch .*$", README, flags=re.MULTILINE)
EVALUATIONS = re.findall(r"^python recipes/evaluate_model.py .*$", README, flags=re.MULTILINE)
CLUSTER = re.findall(r"^(?:sbatch|bash) .*recipes/cluster/.*$", README, flags=re.MULTILINE)


def recipe_types(path: Path) -> list[type]:
    """The argument classes that a recipe's `main` asks for."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(get_type_hints(module.main).values())


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert target.startswith("http") or (ROOT / target).exists()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:recipes|src|tests|benchmarks|accelerate_configs)/[\w./-]*)`", README)))
)
def test_paths_exist(path):
    assert (ROOT / path).exists()


def test_make_targets_exist():
    named = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    made = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= made


@pytest.mark.parametrize("launch", LAUNCHES)
def test_launch_commands_parse(launch, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(launch)
    config, recipe = words[words.index("--config_file") + 1], next(w for w in words if w.endswith(".py"))
    assert yaml.safe_load(Path(config).read_text())["num_processes"] >= 1
    assert parse(recipe_types(ROOT / recipe), words[words.index(recipe) + 1 :])


PLAIN = re.findall(r"(?:^|\| )(python recipes/(?:export|chat|merge|report)\.py .*)$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("line", PLAIN)
def test_commands_of_recipes_without_yaml_parse(line, monkeypatch):
    words = shlex.split(line.split("`")[0])
    seen = []
    monkeypatch.setattr(sys, "argv", words[1:])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args, seen))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    assert seen


class Parsed(Exception):
    """The command line was read; the rest of the recipe is not run."""


def stop_after(parse_args, seen):
    def parse(self, *arguments):
        seen.append(parse_args(self, *arguments))
        raise Parsed

    return parse


def test_there_are_commands_of_both_kinds():
    assert {line.split()[1] for line in PLAIN} >= {"recipes/export.py", "recipes/chat.py"}


def test_there_are_launch_commands():
    assert len(LAUNCHES) >= 3


@pytest.mark.parametrize("line", EVALUATIONS)
def test_evaluations_parse_and_name_tasks_that_exist(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    models, args = parse(recipe_types(ROOT / "recipes" / "evaluate_model.py"), shlex.split(line)[2:])
    assert models.models
    own = [name for name in (args.tasks or "").split(",") if name.startswith("local_")]
    assert all((ROOT / "recipes" / "tasks" / f"{name}.yaml").is_file() for name in own) and bool(own) == bool(args.task_data)


def test_there_are_evaluations():
    assert len(EVALUATIONS) == 3


@pytest.mark.parametrize("line", CLUSTER)
def test_cluster_commands_name_a_rung_and_its_yaml(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    script = next(n for n, word in enumerate(words) if word.startswith("recipes/cluster/"))
    config = next(word for word in words[script + 1 :] if word.endswith(".yaml"))
    assert Path(words[script]).is_file() and Path(config).is_file()
    rung = "prepare" if words[script].endswith("prepare.sbatch") else words[words.index(config) - 1]
    assert parse(recipe_types(ROOT / "recipes" / f"{rung}.py"), ["--config", config])


def test_there_are_cluster_commands():
    assert len(CLUSTER) >= 3


def test_push_commands_are_understood(monkeypatch, tmp_path, capsys):
    """Their own parser reads them; what is refused then is that there is no such directory here."""
    monkeypatch.chdir(tmp_path)
    pushes = re.findall(r"^python (recipes/push\.py) (.*)$", README, flags=re.MULTILINE)
    assert len(pushes) >= 2
    for path, words in pushes:
        monkeypatch.setattr(sys, "argv", [path, *shlex.split(words)])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / path), run_name="__main__")
        assert "error: not pushed: out/nano/grpo: there is no run.json" in capsys.readouterr().err


def test_yaml_examples_are_read():
    known = set(DataArguments.__dataclass_fields__) | set(PrepareArguments.__dataclass_fields__) | {"path", "weight"}
    examples = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    assert len(examples) >= 2
    for example in examples:
        keys = set(example) | {key for source in example.get("datasets", []) for key in source}
        assert keys <= known


def test_tree_names_every_module_on_its_floor():
    tree = next(text for kind, text in BLOCKS if not kind and "src/groundup/" in text)
    listed = {name for line in re.findall(r"^  \d .*$", tree, flags=re.MULTILINE) for name in line[21:].split()}
    assert listed == {path.stem for path in (ROOT / "src/groundup").glob("*.py")} - {"__init__"}


def test_folders_of_the_tree_exist():
    tree = next(text for kind, text in BLOCKS if not kind and "src/groundup/" in text)
    for folder in re.findall(r"^(\w+/?\w*/)\s", tree, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir()


def test_options_named_in_prose_exist():
    from groundup.configs import GateArguments, RunArguments
    from trl import SFTConfig

    fields = (
        set(SFTConfig.__dataclass_fields__)
        | set(GateArguments.__dataclass_fields__)
        | set(RunArguments.__dataclass_fields__)
        | {"config_file", "cpu", "num_processes", "shard", "count", "mfu", "revisions", "web"}
    )
    assert {option.replace("-", "_") for option in re.findall(r"`[^`\n]*?--(\w[\w-]*)", README)} <= fields


def test_snippet_runs(tiny_base, capsys):
    snippet = next(text for kind, text in BLOCKS if kind == "python").replace("out/nano/grpo", str(tiny_base))
    names: dict = {}
    exec(compile(snippet, "README", "exec"), names)
    assert names["chat"].task == "text-generation"
    assert capsys.readouterr().out.endswith("\n")
