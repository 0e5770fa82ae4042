"""The whole nano ladder twice, once quietly and once with harm done in every rung: both end with the same weights.

python tests/faults/chaos.py out/chaos            (`make chaos`; --quick for few steps a rung)

In each rung the recipe is killed, later asked to stop, and later killed once more with its newest checkpoint damaged; each time
recipes/ladder.sh is run again. The two ladders climb side by side, a core each, in folders of their own.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from groundup import record
from groundup.checkpoint import MANIFEST, checkpoints

REPOSITORY = Path(__file__).parents[2]
# Steps between saves: ten saves a rung, so that there is an older one to go back to.
SAVE_STEPS = {"pretrain": 100, "sft": 150, "reward": 25, "ppo": 4, "grpo": 6}
QUICK = {
    "pretrain": {"max_steps": 160, "save_steps": 16, "eval_steps": 80, "lr_scheduler_kwargs": {"num_decay_steps": 80}},
    "sft": {"max_steps": 200, "save_steps": 20},
    "reward": {"max_steps": 100, "save_steps": 10},
    "ppo": {"max_steps": 24, "save_steps": 2, "per_device_train_batch_size": 16},
    "grpo": {"max_steps": 20, "save_steps": 2, "per_device_train_batch_size": 32, "force": True, "gate_prompts": 8},
    "evaluate": {"max_rows": 8, "pass_at_k_problems": 4},
}
RUNGS = tuple(SAVE_STEPS)
FAULTS = {"SIGKILL": 1, "SIGTERM": 3, "damage": 5}  # with the number of saves after which it comes
DAMAGED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")  # a file a rung
PATIENCE = 1800  # seconds without a save


class Failure(Exception):
    """What should not have happened."""


@dataclass
class Ladder:
    """recipes/ladder.sh on the YAML files in `recipes`, climbed in `work`, as often as it is started."""

    work: Path
    recipes: Path
    seed: int
    lives: int = 0
    process: subprocess.Popen | None = None

    def start(self) -> None:
        self.work.mkdir(exist_ok=True)
        self.lives += 1
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORK": str(self.work), "SEED": str(self.seed), "HF_HUB_OFFLINE": "1"}
        environment["ACCELERATE_CONFIG"] = str(REPOSITORY / "accelerate_configs" / "cpu.yaml")
        environment["TRACKIO_DIR"] = str(self.work / "trackio")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with open(self.log, "w") as log:
            command = ["bash", str(self.recipes / "ladder.sh"), "nano"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    @property
    def log(self) -> Path:
        return self.work / f"life-{self.lives}.log"

    def stage(self, rung: str) -> Path:
        return self.work / "out" / "nano" / rung

    def record(self, rung: str) -> dict[str, Any]:
        return record.read(self.stage(rung)) or {}

    def wait(self, until: Callable[[], Any] | None = None) -> int | None:
        """Its exit status; or None, as soon as `until` is true."""
        began = time.monotonic()
        while self.process.poll() is None and not (until and until()):
            if time.monotonic() - began > PATIENCE:
                raise Failure(f"nothing happened for {PATIENCE} s, see {self.log}")
            time.sleep(0.02)
        return self.process.poll()

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def copy_recipes(folder: Path, quick: bool) -> Path:
    """recipes/ with other numbers in its nano YAML files."""
    shutil.copytree(REPOSITORY / "recipes", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "nano").glob("*.yaml"):
        changes = {"save_steps": SAVE_STEPS[path.stem], "save_total_limit": 2} if path.stem in RUNGS else {}
        values = {**yaml.safe_load(path.read_text()), **changes, **(QUICK.get(path.stem, {}) if quick else {})}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def sealed(stage: Path) -> list[int]:
    return [step for step, path in checkpoints(stage) if (path / MANIFEST).is_file()]


def harm(ladder: Ladder, rung: str, fault: str, moments: random.Random) -> str:
    """Do it to a rung that trains; returns what its next run must say."""
    stage, due = ladder.stage(rung), FAULTS[fault]
    resumed = ladder.record(rung).get("saved_step", 0)
    every = yaml.safe_load((ladder.recipes / "nano" / f"{rung}.yaml").read_text())["save_steps"]

    def ready() -> bool:
        there = ladder.record(rung)
        saved = there.get("saved_step", 0)
        under_way = there.get("status") == "running" and Path(f"/proc/{there['pid']}").is_dir()
        return under_way and saved >= max(due * every, resumed + 1) and (fault != "damage" or len(sealed(stage)) > 1)

    status = ladder.wait(until=ready)
    if status is not None:
        raise Failure(f"the ladder ended with {status} before {fault} came, see {ladder.log}")
    time.sleep(moments.uniform(0, 0.2))
    os.kill(ladder.record(rung)["pid"], signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
    if not ladder.wait():
        raise Failure(f"the ladder ended well in spite of {fault}, see {ladder.log}")
    if fault == "SIGTERM":
        left = {key: ladder.record(rung).get(key) for key in ("status", "exit_status", "reason")}
        if left != {"status": "interrupted", "exit_status": 75, "reason": "SIGTERM"}:
            raise Failure(f"after SIGTERM the record says {left}")
    there = sealed(stage)
    if fault != "damage":
        return f"going on from {stage_name(rung)}/checkpoint-{there[-1]}"
    path = stage / f"checkpoint-{there[-1]}" / DAMAGED[RUNGS.index(rung)]
    content = bytearray(path.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    path.write_bytes(content)
    return f"checkpoint-{there[-1]} is damaged: {path.name} | going on from {stage_name(rung)}/checkpoint-{there[-2]}"


def stage_name(rung: str) -> str:
    """As the YAML file says it."""
    return f"out/nano/{rung}"


def check_said(ladder: Ladder, rung: str, expected: str) -> str:
    """What the run after a fault said of it."""

    def lines() -> list[str]:
        return [line for line in ladder.log.read_text().splitlines() if line.startswith(f"{rung}: ")]

    parts = expected.split(" | ")
    ladder.wait(until=lambda: any("going on from" in line for line in lines()))
    said = " | ".join(line.removeprefix(f"{rung}: ") for line in lines() if "going on" in line or "checkpoint" in line)
    if missing := [part for part in parts if part not in said]:
        raise Failure(f"{rung} said `{said}`, and not `{missing[0]}`, see {ladder.log}")
    return said.replace(f"{stage_name(rung)}/", "")


def print_row(*cells: Any) -> None:
    widths = (8, 8, 10)
    print("  ".join(f"{cell!s:{width}}" for cell, width in zip(cells, (*widths, 0), strict=True)), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--quick", action="store_true", help="few steps a rung")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if folder.exists():
        sys.exit(f"error: {args.folder} is there already: give another folder, or remove it")
    folder.mkdir(parents=True)
    recipes, moments = copy_recipes(folder / "recipes", args.quick), random.Random(args.seed)
    quiet, harmed = (Ladder(folder / name, recipes, args.seed) for name in ("quiet", "harmed"))
    rows: list[tuple[str, str, str]] = []
    try:
        quiet.start()
        harmed.start()
        for rung in RUNGS:
            for fault in FAULTS:
                expected = harm(harmed, rung, fault, moments)
                harmed.start()
                rows.append((rung, fault, check_said(harmed, rung, expected)))
                print(f"{rung}: {fault}: {rows[-1][2]}", file=sys.stderr, flush=True)
        for ladder in (harmed, quiet):
            if status := ladder.wait():
                raise Failure(f"the ladder ended with {status}, see {ladder.log}")
    except Failure as failure:
        print(f"chaos: {failure}", file=sys.stderr)
        return 1
    finally:
        for ladder in (quiet, harmed):
            ladder.end()
    equal = {}
    for rung in RUNGS:
        hashes = [record.hash_weights(ladder.stage(rung)) for ladder in (quiet, harmed)]
        equal[rung] = hashes[0] is not None and hashes[0] == hashes[1]
    print_row("rung", "fault", "hash equal", "what the next run said")
    for rung, fault, said in rows:
        print_row(rung, fault, "yes" if equal[rung] else "NO", said)
    differ = [rung for rung in RUNGS if not equal[rung]]
    print(f"chaos: {len(rows)} faults, {f'hashes differ: {chr(32).join(differ)}' if differ else 'all hashes equal'}")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
