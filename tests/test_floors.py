"""The package is built in floors: a module imports from the floors below it, and beside it only what is listed here."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "groundup"
FLOORS = (
    "errors words chat answers objectives stats phrases scoreboard record configs packing order jobs stopping"
    " neighbours reading",  # facts and formulas
    "tokenizer model head generation toyland families sources data verifier guarding sandbox unit_tests languages rewards metrics"
    " multiple_choice shards checkpoint hub running preflight command_line cleaning minhash contamination hardware"
    " memory",  # things
    "optim saving finite tracking samples callbacks pretraining sft curriculum grpo gate ppo evaluation harness exposure suite"
    " corpus selection",  # loops
    "card curves page results lineage diagnostics report comparison stage merging preparation workload step plan plan_table export"
    " conversation server terminal",  # joints
)  # and recipes/ on top
SIDEWAYS = {  # all there are: one that is no longer needed is taken out
    ("record", "errors"),
    ("configs", "errors"),
    ("stopping", "errors"),
    ("reading", "errors"),
    ("running", "checkpoint"),
    ("running", "hub"),
    ("hub", "checkpoint"),
    ("preflight", "shards"),
    ("command_line", "running"),
    ("finite", "pretraining"),
    ("finite", "saving"),
    ("callbacks", "saving"),
    ("callbacks", "finite"),
    ("callbacks", "samples"),
    ("callbacks", "tracking"),
    ("samples", "pretraining"),
    ("data", "sources"),
    ("rewards", "guarding"),
    ("rewards", "verifier"),
    ("rewards", "sandbox"),
    ("rewards", "unit_tests"),
    ("rewards", "languages"),
    ("metrics", "verifier"),
    ("shards", "tokenizer"),
    ("jobs", "errors"),
    ("cleaning", "minhash"),
    ("contamination", "sources"),
    ("selection", "corpus"),
    ("families", "toyland"),
    ("ppo", "grpo"),
    ("gate", "grpo"),
    ("harness", "evaluation"),
    ("suite", "evaluation"),
    ("suite", "harness"),
    ("grpo", "curriculum"),
    ("report", "curves"),
    ("report", "page"),
    ("report", "results"),
    ("report", "lineage"),
    ("report", "diagnostics"),
    ("lineage", "results"),
    ("comparison", "report"),
    ("comparison", "curves"),
    ("comparison", "page"),
    ("stage", "card"),
    ("merging", "card"),
    ("merging", "stage"),
    ("export", "card"),
    ("server", "conversation"),
    ("terminal", "conversation"),
    ("export", "stage"),
    ("stage", "plan"),
    ("plan", "step"),
    ("plan_table", "plan"),
    ("plan", "workload"),
    ("step", "workload"),
}
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "core", "manager", "base", "misc"}
LONGEST = 420  # lines


def imports(source: str) -> set[str]:
    """The groundup modules that a source imports anywhere in it, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'groundup' * bool(node.level)}.{node.module or ''}".strip(".")]
            if names[0] == "groundup":
                names = [f"groundup.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("groundup.")}
    return found


MODULES = {path.stem: path.read_text(encoding="utf-8") for path in SOURCE.glob("*.py") if path.stem != "__init__"}
IMPORTS = {name: imports(source) for name, source in MODULES.items()}


def test_imports_are_found_in_all_their_forms():
    source = """
import os, groundup.answers as a
from groundup import stats, record
from groundup.ppo import PPOTrainer
from .chat import ROLES
from . import card
def f():
    import groundup.rewards
"""
    assert imports(source) == {"answers", "stats", "record", "ppo", "chat", "card", "rewards"}


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR)
    assert not [path for path in SOURCE.rglob("*.py") if path.parent != SOURCE]  # folders would hide from this test


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_from_below(name):
    above = {other for other in IMPORTS[name] if FLOOR[other] > FLOOR[name]}
    assert not above, f"{name} is on floor {FLOOR[name]}"


def test_imports_beside_are_the_listed_ones():
    assert {(name, other) for name in MODULES for other in IMPORTS[name] if FLOOR[other] == FLOOR[name]} == SIDEWAYS


def test_listed_imports_form_no_circle():
    left = set(SIDEWAYS)
    while left:
        ends = {other for _, other in left} - {name for name, _ in left}
        assert ends, f"a circle among {left}"
        left = {(name, other) for name, other in left if other not in ends}


def test_package_does_not_know_the_recipes():
    recipes = {path.stem for path in (SOURCE.parents[1] / "recipes").glob("*.py")}
    assert recipes
    for name, source in MODULES.items():
        roots = {
            module.split(".")[0]
            for node in ast.walk(ast.parse(source))
            for module in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""])
        }
        assert "recipes" not in roots, name


@pytest.mark.parametrize("name", MODULES)
def test_module_has_a_name_that_says_something_and_fits_in_the_head(name):
    assert not SAYS_NOTHING & set(name.split("_"))
    assert MODULES[name].count("\n") <= LONGEST, f"split {name} along names that its parts already have"
