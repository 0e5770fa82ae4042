"""Kill it any time: the same command resumes, loses at most one save interval, and ends with the weights it would have had."""

import hashlib
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from groundup import record
from groundup.checkpoint import MANIFEST, checkpoints, newest_checkpoint
from recipes.miniature import run_recipe

from faults.snapshots import Picture, pictures

NAMES = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
INTERVAL = {"ppo": 2}  # steps between saves, else 1: a rollout of two steps is used up first
EVERY_MOMENT = ("pretrain", "ppo")  # of which all the worst are resumed to the end; of the others, whose saves are alike, some
EVERY_STEP = {"save_steps": 1, "save_total_limit": 1}


def weights_of(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def take_pictures(start_recipe, name, directory, settings) -> list[Picture]:
    album = directory.with_name(f"{directory.name}-album")
    prelude = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import snapshots
snapshots.begin({str(directory)!r}, {str(album)!r})
"""
    recipe = start_recipe(name, directory, settings, prelude)
    assert recipe.wait() == 0, recipe.stderr
    return list(pictures(album))


def sealed(directory: Path) -> list[int]:
    return [step for step, path in checkpoints(directory) if (path / MANIFEST).is_file()]


def check_choice(shown: list[Picture], folder: Path, interval: int) -> set[int]:
    """Each picture is gone on from at the newest step that was ever sealed; returns those steps."""
    last, steps, recorded = 0, set(), False
    for number, picture in enumerate(shown):
        directory = picture.put(folder / str(number), link=True)
        last = max([last, *sealed(directory)])
        entry = record.read(directory)
        recorded |= entry is not None
        assert recorded == (entry is not None), f"run.json is lost at {picture.label}"
        if entry and entry["status"] == "finished":
            continue
        begun = [step for step, _ in checkpoints(directory)]
        found, _ = newest_checkpoint(directory, (entry or {}).get("saved_step"))
        expected = str(directory / f"checkpoint-{last}") if last else None
        assert found == expected, f"at {picture.label}"
        assert max(begun, default=last) - last <= interval, f"at {picture.label}"
        assert checkpoints(directory)[-1:] == ([(last, Path(found))] if found else []), f"at {picture.label}"
        steps.add(last)
    return steps


def worst_moments(shown: list[Picture], steps: list[int]) -> dict[str, Picture]:
    """The moments that one would fear most, each with its name."""
    first, second, last = steps[0], steps[1], steps[-1]
    manifest = [n for n, p in enumerate(shown) if p.label == f"os.rename checkpoint-{second}/{MANIFEST}"]
    assert len(manifest) == 1
    removals = [p for p in shown if p.label.startswith(f"os.remove .checkpoint-{first}.gone/")]
    end = [p for p in shown if p.label == "os.rename run.json"]

    def half(name: str) -> Picture:
        return next(p for p in shown if p.cut == name)

    return {
        "first weights half written": half(f"checkpoint-{first}/model.safetensors"),
        "weights half written": half(f"checkpoint-{second}/model.safetensors"),
        "before the seal": shown[manifest[0]],
        "after the seal": shown[manifest[0] + 1],
        "while the old one is deleted": removals[len(removals) // 2],
        "final weights half written": half("model.safetensors"),
        "before the record says finished": end[-1],
        "last checkpoint sealed": next(p for p in shown if last in sealed(p.place)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_kill_at_every_write_of_every_save(name, rungs, start_recipe, tmp_path, capsys):
    whole = weights_of(rungs[name].directory)
    settings = {**rungs.settings(name), **EVERY_STEP}
    shown = take_pictures(start_recipe, name, tmp_path / name, settings)
    assert weights_of(tmp_path / name) == whole
    interval, steps = INTERVAL.get(name, 1), settings["max_steps"]
    assert check_choice(shown, tmp_path / "chosen", interval) == set(range(0, steps + 1, interval))
    moments = worst_moments(shown, list(range(interval, steps + 1, interval)))
    chosen = list(moments.items())[:: 1 if name in EVERY_MOMENT else 3]
    for number, (moment, picture) in enumerate(chosen):
        directory = picture.put(tmp_path / f"again-{number}")
        newest = max(sealed(directory), default=None)
        capsys.readouterr()
        run_recipe(name, directory, **settings)
        assert f"going on from {directory / f'checkpoint-{newest}' if newest else 'the beginning'}" in capsys.readouterr().out
        assert weights_of(directory) == whole, moment
        assert sealed(directory) == [steps], moment
        assert not [path.name for path in directory.iterdir() if path.name.startswith(".")], moment


def test_kill_at_every_write_where_older_checkpoints_stay(rungs, start_recipe, tmp_path):
    settings = {**rungs.settings("pretrain"), "save_steps": 1}
    shown = take_pictures(start_recipe, "pretrain", tmp_path / "pretrain", settings)
    last = 0
    for number, picture in enumerate(shown):
        directory = picture.put(tmp_path / str(number), link=True)
        there = sealed(directory)
        last = max([last, *there])
        assert there == list(range(1, last + 1)), picture.label
        if (entry := record.read(directory)) and entry["status"] != "finished":
            found, _ = newest_checkpoint(directory, entry.get("saved_step"))
            assert found == (str(directory / f"checkpoint-{last}") if last else None), picture.label
            assert sealed(directory) == there, picture.label
    assert last == 4


# ---- at moments that nobody chose


def told_step(recipe) -> int:
    """The last step that a run has told."""
    told = [line.split()[1].partition("/")[0] for line in recipe.stdout.splitlines() if line.startswith("step ")]
    return max(map(int, told), default=0)


def kill(recipe, step: int, delay: float) -> bool:
    """Whether SIGKILL came in time, `delay` seconds after this step was told; step 0 is when run.json is there."""
    recipe.wait(until=lambda: (recipe.directory / "run.json").is_file() and told_step(recipe) >= step)
    threading.Event().wait(delay)
    if recipe.poll() is None:
        recipe.send(signal.SIGKILL)
    return recipe.wait() == -signal.SIGKILL


def kill_and_go_on(start_recipe, name: str, directory: Path, settings: dict, seed: int) -> tuple[Path, list[str]]:
    """Kill a recipe at a random moment, perhaps twice, and run it to its end: where, and what each run that went on said."""
    moments, interval, most = random.Random(seed), INTERVAL.get(name, 1), 0.3
    steps, kills, said = settings["max_steps"], moments.choice((1, 1, 2)), []
    while not kill(recipe := start_recipe(name, directory, settings), moments.randrange(steps - 1), moments.uniform(0, most)):
        assert recipe.status == 0, recipe.stderr  # it was faster than the random number, and nothing was tried
        directory, most = directory.with_name(f"{directory.name}x"), most / 2
    reached = 0
    while True:
        reached, kills = max(reached, told_step(recipe)), kills - 1
        recipe = start_recipe(name, directory, settings)
        killed = kills and kill(recipe, moments.randrange(steps - 1), moments.uniform(0, most))
        assert killed or recipe.wait() == 0, recipe.stderr
        for line in recipe.stdout.splitlines():
            if "going on from" in line:
                said.append(line)
                assert int(line.rpartition("checkpoint-")[2] if "checkpoint-" in line else 0) >= reached - interval, line
        if not killed:
            return directory, said


@pytest.mark.parametrize(("name", "times"), [("pretrain", 10), *((name, 4) for name in NAMES[1:])])
def test_kill_at_random_moments(name, times, rungs, start_recipe, tmp_path):
    """With one checkpoint kept. Of a step that was told the save before it is done, so at most one interval is lost."""
    whole, settings = weights_of(rungs[name].directory), {**rungs.settings(name), **EVERY_STEP}

    def once(number: int) -> None:
        seed = 100 * NAMES.index(name) + number
        directory, said = kill_and_go_on(start_recipe, name, tmp_path / str(number), settings, seed)
        assert said and weights_of(directory) == whole, f"seed {seed}: {said}"

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(once, range(times)))
