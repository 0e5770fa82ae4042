"""A disk that is full, too small or not to be written to, two runs in one directory, and memory that is used up."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from groundup.checkpoint import MANIFEST, checkpoints
from safetensors.torch import load_file

EVERY_STEP = {"save_steps": 1, "save_total_limit": 1}


def weights_of(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def mount(folder: Path, *options: str) -> Path:
    """A disk of its own, in memory; the test is skipped where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    return folder


@pytest.fixture
def disk(tmp_path):
    """4 MiB."""
    folder = mount(tmp_path / "disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# ---- no room left

# Once the first half of a file of checkpoint-2, or of the final weights, would be written, there is room for 20,000 bytes more.
FILLING = """
import os, resource, sys
import safetensors.torch, torch

last, how, filler = {last!r}, {how!r}, {filler!r}

def fill():
    global last
    last = None
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return
    room = os.statvfs(os.path.dirname(filler))
    with open(filler, "wb") as file:
        file.write(bytes(room.f_bavail * room.f_frsize - 20_000))

def before(function, place):
    def call(*args, **kwargs):
        if last and str(args[place]) == last:
            fill()
        return function(*args, **kwargs)
    return call

torch.save = before(torch.save, 1)
safetensors.torch.serialize_file = before(safetensors.torch.serialize_file, 1)
"""


def check_refused(recipe, what: str) -> None:
    """One line of what it is, no traceback, exit status 1, and the same in the record."""
    assert recipe.wait() == 1
    said = [line for line in recipe.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and re.match(f"error: {what}", said[0]), recipe.stderr
    assert "Traceback" not in recipe.stderr
    record = recipe.record
    assert (record["status"], record["exit_status"]) == ("failed", 1)
    assert record["reason"].startswith(said[0].removeprefix("error: "))


def check_full(start_recipe, whole, settings, directory: Path, file: str, how: str, filler: Path) -> None:
    recipe = start_recipe("pretrain", directory, settings, FILLING.format(last=str(directory / file), how=how, filler=str(filler)))
    place = file.partition("/")[0]
    check_refused(recipe, rf"no room for {place}: it needs \d+ KiB and the disk has [\d.,]+ .iB \(.+\)$")
    kept = 1 if place == "checkpoint-2" else 4
    assert f"run the same command again; checkpoint-{kept} is whole" in recipe.stderr
    assert [step for step, _ in checkpoints(directory)] == [kept] and not (directory / place).exists()
    filler.unlink(missing_ok=True)
    again = start_recipe("pretrain", directory, settings)
    assert again.wait() == 0, again.stderr
    assert f"going on from {directory}/checkpoint-{kept}\n" in again.stdout
    assert again.record["status"] == "finished" and weights_of(directory) == weights_of(whole.directory)


@pytest.mark.parametrize("file", ["checkpoint-2/model.safetensors", "checkpoint-2/optimizer.pt", "model.safetensors"])
def test_disk_that_fills_up_in_the_middle_of_a_save(file, rungs, start_recipe, disk):
    settings = {**rungs.settings("pretrain"), **EVERY_STEP}
    check_full(start_recipe, rungs["pretrain"], settings, disk / "pretrain", file, "disk", disk / "filler")


def test_disk_that_fills_up_while_an_adapter_is_handed_over(rungs, start_recipe, disk):
    settings = {**rungs.settings("sft"), **EVERY_STEP, "use_peft": True, "lora_r": 256}  # so that a page is not all of it
    directory, filler = disk / "sft", disk / "filler"
    file = directory / "adapter_model.safetensors"
    recipe = start_recipe("sft", directory, settings, FILLING.format(last=str(file), how="disk", filler=str(filler)))
    check_refused(recipe, r"no room for adapter_model.safetensors: it needs \d+ KiB and the disk has [\d.,]+ .iB \(.+\)$")
    assert "run the same command again; checkpoint-4 is whole" in recipe.stderr and not file.exists()
    filler.unlink()
    again = start_recipe("sft", directory, settings)
    assert again.wait() == 0, again.stderr
    assert (
        again.record["status"] == "finished" and load_file(file).keys() == load_file(directory / "checkpoint-4" / file.name).keys()
    )


def test_limit_on_files_in_the_middle_of_a_save(rungs, start_recipe, tmp_path):
    """A quota has the same effect, and this one needs no rights."""
    settings = {**rungs.settings("pretrain"), **EVERY_STEP}
    file = "checkpoint-2/optimizer.pt"
    check_full(start_recipe, rungs["pretrain"], settings, tmp_path / "pretrain", file, "limit", tmp_path / "none")


FAKED = """
import os, shutil
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage(path)._replace(free=5000) if os.path.exists({once!r}) else usage(path)
"""


def test_too_little_room_is_refused_before_anything_is_written(rungs, start_recipe, tmp_path):
    settings = {**rungs.settings("pretrain"), **EVERY_STEP}
    directory = tmp_path / "pretrain"
    recipe = start_recipe("pretrain", directory, settings, FAKED.format(once=str(directory / "checkpoint-1" / MANIFEST)))
    check_refused(recipe, r"no room for checkpoint-2: it needs \d+ KiB and the disk has 5 KiB$")
    assert [path.name for path in sorted(directory.iterdir()) if path.is_dir()] == ["checkpoint-1", "tokens"]
    again = start_recipe("pretrain", directory, settings)
    assert again.wait() == 0 and weights_of(directory) == weights_of(rungs["pretrain"].directory)


def test_too_little_room_is_foreseen_at_the_start(rungs, start_recipe, tmp_path):
    recipe = start_recipe("pretrain", tmp_path / "pretrain", rungs.settings("pretrain"), FAKED.format(once="/"))
    assert recipe.wait() == 2
    assert re.search(r"error: pretrain will not fit on the disk: it writes about \d+ .iB of 5 KiB free", recipe.stderr)
    assert "Traceback" not in recipe.stderr and not (tmp_path / "pretrain").exists()


# ---- a directory that cannot be written to, or is in use

NO_MODEL = """
import torch
def explode(self, *args, **kwargs):
    raise SystemExit("a model was made")
torch.nn.Module.__init__ = explode
"""


@pytest.mark.parametrize("name", ["pretrain", "sft"])
@pytest.mark.parametrize("how", ["below a file", "read-only disk", "no permission"])
def test_directory_that_cannot_be_written_to_is_refused_before_a_model_is_loaded(name, how, rungs, start_recipe, tmp_path, request):
    rungs[name]  # what it reads is there
    parent = tmp_path / "parent"
    if how == "below a file":
        parent.write_text("x")
    elif how == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        parent.mkdir(mode=0o500)
    else:
        parent = request.getfixturevalue("disk")
        subprocess.run(["mount", "-o", "remount,ro", str(parent)], check=True)
    recipe = start_recipe(name, parent / name, rungs.settings(name), NO_MODEL)
    assert recipe.wait() == 2, recipe.stderr
    why = {"below a file": "Not a directory", "read-only disk": "Read-only file system", "no permission": "Permission denied"}
    told = [f"error: cannot write there: {why[how]}", f"  where: {parent / name}", "  fix:   give another `output_dir`"]
    assert recipe.stderr.splitlines()[-3:] == told


def test_second_run_in_a_directory_is_refused_and_the_first_unharmed(rungs, start_recipe, tmp_path):
    settings, directory = rungs.settings("sft"), tmp_path / "sft"
    first = start_recipe("sft", directory, settings)
    first.wait(until=lambda: "step 1/" in first.stdout)
    first.send(signal.SIGSTOP)  # so that it is certain to train still
    before = (directory / "run.json").read_text()
    second = start_recipe("sft", directory, settings)
    assert second.wait() == 2
    since = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    who = rf"error: the directory is in use by process {first.pid} on {re.escape(socket.gethostname())}, since {since}$"
    assert re.search(who, second.stderr, re.MULTILINE), second.stderr
    assert "Traceback" not in second.stderr
    assert (directory / "run.json").read_text() == before and json.loads(before)["pid"] == first.pid
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.stderr
    assert first.record["status"] == "finished" and weights_of(directory) == weights_of(rungs["sft"].directory)
    third = start_recipe("sft", directory, settings)
    assert third.wait() == 0 and "sft: finished already" in third.stdout


# ---- no memory left

SMALL = """
import torch
from transformers import Trainer
step = Trainer.training_step
def in_a_small_memory(self, *args, **kwargs):
    if self.state.global_step == 1 and self.args.per_device_train_batch_size > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return step(self, *args, **kwargs)
Trainer.training_step = in_a_small_memory
"""


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_out_of_memory_names_the_micro_batch_that_goes_on(name, rungs, start_recipe, tmp_path):
    settings, directory = {**rungs.settings(name), **EVERY_STEP}, tmp_path / name
    recipe = start_recipe(name, directory, settings, SMALL)
    check_refused(recipe, "out of memory: CUDA out of memory")
    written = dict(re.findall(r"`(\w+): (\d+)`", recipe.stderr))
    assert written == {"per_device_train_batch_size": "2", "gradient_accumulation_steps": "2"}
    assert "the same 4 rows a step" in recipe.stderr
    again = start_recipe(name, directory, {**settings, **written}, SMALL)
    assert again.wait() == 0, again.stderr
    assert f"going on from {directory}/checkpoint-1\n" in again.stdout
    assert (again.record["status"], again.record["steps"]) == ("finished", 4)
    told = [
        [line["loss"] for line in json.loads((path / "trainer_state.json").read_text())["log_history"] if "loss" in line]
        for path in (directory, rungs[name].directory)
    ]
    assert len(told[0]) == 4 and told[0] == pytest.approx(told[1], rel=1e-3)
