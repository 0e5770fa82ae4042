"""docs/: links lead somewhere, commands parse, settings that are named exist."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import transformers.trainer
import trl.trainer.grpo_trainer
from groundup.command_line import dataclass_fields, parse
from groundup.workload import TYPES
from test_readme import recipe_types

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    if not kind
    for line in block.strip().splitlines()
]
# Words with an underscore that are no setting: of files, of records, of a launcher, of other libraries
OTHERS = {"accelerate_configs", "weights_only", "ddp_timeout", "eval_questions", "config_file", "num_processes"}
OTHERS |= {"apply_chat_template", "add_generation_prompt"}
LOGS = [inspect.getsource(module) for module in (trl.trainer.grpo_trainer, transformers.trainer)]
LOGS += [path.read_text() for path in (ROOT / "src" / "groundup").glob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert {page.name for page in PAGES} - {"README.md"} == set(re.findall(r"\]\((\S+\.md)\)", index))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_would_run(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = re.sub(r"^echo .* \| ", "", line)
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z]+=", word)]
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        return
    script = next((word for word in words if word.endswith((".py", ".sh"))), None)
    assert words[0] in ("python", "bash", "accelerate") and (script is None or Path(script).is_file())
    if words[0] == "accelerate":
        assert Path(words[words.index("--config_file") + 1]).is_file()
        assert parse(recipe_types(ROOT / script), words[words.index(script) + 1 :])
    elif "--config" in words:
        assert Path(words[words.index("--config") + 1]).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_that_are_named_exist(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`([a-z]+(?:/[a-z]+)?(?:_[a-z]+)+)(?::[^`]*)?`", prose)) | {
        option for option in re.findall(r"`[^`\n]*?--(\w+)", prose) if "_" in option
    }
    known = {key for types in TYPES.values() for key in dataclass_fields(types)}
    written = {name for name in named for text in LOGS if f'"{name}"' in text or f"def {name}(" in text}  # keys of logs, functions
    assert named <= known | OTHERS | written


def test_files_of_ones_own_are_those_that_the_recipes_read():
    read = {name for path in (ROOT / "recipes" / "mine").glob("*.yaml") for name in re.findall(r"\bmy/[\w./]+", path.read_text())}
    table = [
        line.split("|")[1] for line in (ROOT / "docs" / "your-own-text.md").read_text().splitlines() if line.startswith("| `my/")
    ]
    assert {name.rstrip("/") for name in read} == {name.rstrip("/") for row in table for name in re.findall(r"`(my/[^`]+)`", row)}
