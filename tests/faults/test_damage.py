"""A checkpoint that is not what was written is named and passed over; where none is whole, nothing is begun again in silence."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from groundup.checkpoint import MANIFEST, checkpoints
from groundup.errors import InputError
from groundup.record import hash_weights
from groundup.stage import describe_parent
from recipes.miniature import interrupt, run_recipe

from faults.test_kill import NAMES

OWN = {"ppo": {}, "grpo": {"curriculum": True}}
FILES = {
    "pretrain": ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST],
    "ppo": ["critic.safetensors"],
    "grpo": ["curriculum.json"],
}
SAID = {"missing": "is missing", "truncated": "bytes, not", "one bit flipped": "is not what was written (sha256)"}


def weights_of(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content if how == "one bit flipped" else content[: len(content) // 2])


@pytest.fixture(scope="module")
def wholes(rungs, tmp_path_factory):
    """Each rung with a checkpoint at least every two steps, all kept."""
    done = {}

    def whole(name):
        if name not in done:
            settings = {**rungs.settings(name), "save_steps": 1, "save_total_limit": 9, **OWN.get(name, {})}
            done[name] = run_recipe(name, tmp_path_factory.mktemp("whole") / name, **settings)
        return done[name]

    return whole


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(name, file, how, wholes, tmp_path, capsys):
    whole = wholes(name)
    older, newest = [step for step, _ in checkpoints(whole.directory)][-3:-1] if name != "ppo" else (2, 4)
    directory = interrupt(whole, tmp_path / name, newest)
    record_saved(directory, newest)
    harm(directory / f"checkpoint-{newest}" / file, how)
    capsys.readouterr()
    resumed = run_recipe(name, directory, **whole.settings)
    said = capsys.readouterr().out
    damage = next(line for line in said.splitlines() if f"checkpoint-{newest} is damaged: " in line)
    found = damage.partition("is damaged: ")[2]
    assert found.startswith(file) and found.endswith(f"; set aside as checkpoint-{newest}.damaged")
    assert SAID[how] in damage or file == MANIFEST
    assert f"{name}: going on from {directory}/checkpoint-{older}\n" in said
    assert weights_of(directory) == weights_of(whole.directory)
    assert resumed.record["status"] == "finished" and (directory / f"checkpoint-{newest}.damaged").is_dir()


def record_saved(directory: Path, step: int, **others) -> None:
    """What a run that was killed after this save has in its record."""
    entry = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**entry, "saved_step": step, **others}))


def content_of(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("recorded", [True, False])
def test_no_whole_checkpoint_stops_the_run(recorded, wholes, tmp_path):
    """However often it is tried; and nothing is moved or deleted that someone might still mend."""
    whole = wholes("pretrain")
    directory = interrupt(whole, tmp_path / "pretrain", 3)
    if recorded:
        record_saved(directory, 3)
    for (_, path), (file, how) in zip(
        checkpoints(directory), [("optimizer.pt", "truncated"), (MANIFEST, "truncated"), ("rng_state.pth", "missing")], strict=True
    ):
        harm(path / file, how)
    before = content_of(directory)
    for _ in range(2):
        with pytest.raises(InputError) as refused:
            run_recipe("pretrain", directory, **whole.settings)
        assert "no checkpoint is whole: checkpoint-3: rng_state.pth is missing; " in refused.value.what
        assert f"checkpoint-2: {MANIFEST} is not readable; checkpoint-1: optimizer.pt has " in refused.value.what
        assert content_of(directory) == before


def test_saved_checkpoints_that_are_gone_stop_the_run(wholes, tmp_path):
    whole = wholes("pretrain")
    directory = interrupt(whole, tmp_path / "pretrain", 3)
    record_saved(directory, 3)
    for _, path in checkpoints(directory):
        shutil.rmtree(path)
    with pytest.raises(InputError, match="step 3 was saved, and there is no checkpoint"):
        run_recipe("pretrain", directory, **whole.settings)


@pytest.mark.parametrize(("how", "said"), [("missing", "run.json is missing"), ("truncated", "run.json is not readable JSON")])
def test_checkpoints_without_their_record_stop_the_run(how, said, wholes, tmp_path):
    """Settings and data could not be compared with those before."""
    whole = wholes("pretrain")
    directory = interrupt(whole, tmp_path / "pretrain", 3)
    harm(directory / "run.json", how)
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            run_recipe("pretrain", directory, **whole.settings)
    assert len(checkpoints(directory)) == 3


# ---- what a rung starts from


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("how", ["truncated", "one bit flipped"])
def test_damaged_parent_is_refused(file, how, rungs, tmp_path):
    parent = tmp_path / "sft"
    shutil.copytree(rungs["sft"].directory, parent)
    assert describe_parent(str(parent))["weights_sha256"] == hash_weights(parent)
    harm(parent / file, how)
    with pytest.raises(InputError, match="the model was changed or damaged since its rung ended") as refused:
        describe_parent(str(parent))
    assert refused.value.where == str(parent)
    assert ("weights" if file == "model.safetensors" else "tokenizer") in refused.value.what
    with pytest.raises(InputError, match="changed or damaged|cannot be read|is no template"):  # whoever comes to it first
        run_recipe("reward", tmp_path / "reward", **{**rungs.settings("reward"), "model_name_or_path": str(parent)})
    assert not (tmp_path / "reward").exists()


def test_parent_without_weights_is_refused(rungs, tmp_path):
    parent = tmp_path / "sft"
    shutil.copytree(rungs["sft"].directory, parent)
    (parent / "model.safetensors").unlink()
    with pytest.raises(InputError, match="weights_sha256 [0-9a-f]{12} -> None"):
        describe_parent(str(parent))


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_parent_whose_rung_has_not_ended_is_refused(status, rungs, tmp_path):
    """A kill while the final weights are written leaves the half of them."""
    parent = tmp_path / "sft"
    shutil.copytree(rungs["sft"].directory, parent)
    record_saved(parent, 4, status=status)
    with pytest.raises(InputError, match=f"its rung has not finished: {status}"):
        describe_parent(str(parent))


# ---- what is called good is

STRANGER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
for directory in map(Path, sys.argv[1:]):
    reward = "SequenceClassification" in (directory / "config.json").read_text()
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model, wrong = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(wrong.values()), (directory, wrong)
    tensors = dict(model.state_dict())
    for name in directory.glob("*.safetensors"):
        tensors |= {f"{name.name}:{key}": value for key, value in load_file(name).items()}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        weights_only = name != "rng_state.pth"  # holds NumPy's state too
        state = torch.load(directory / name, weights_only=weights_only)
        if name == "optimizer.pt":
            for number, values in state["state"].items():
                tensors |= {f"{name}:{number}:{k}": v for k, v in values.items() if isinstance(v, torch.Tensor)}
    assert len(tensors) > 20, directory
    infinite = [key for key, value in tensors.items() if not torch.isfinite(value.float()).all()]
    assert not infinite, (directory, infinite)
    AutoTokenizer.from_pretrained(directory)
    json.loads((directory / "trainer_state.json").read_text())
print("RESULT", len(sys.argv) - 1)
"""


def test_every_sealed_checkpoint_is_finite_and_loads(rungs, wholes):
    directories = [str(path) for name in NAMES for _, path in checkpoints(rungs[name].directory)]
    directories += [str(path) for name in FILES for _, path in checkpoints(wholes(name).directory)]
    assert len(directories) >= 20 and all(Path(path, MANIFEST).is_file() for path in directories)
    done = subprocess.run([sys.executable, "-c", STRANGER, *directories], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"RESULT {len(directories)}" in done.stdout
