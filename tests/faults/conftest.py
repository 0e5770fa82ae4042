import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from recipes.conftest import rungs  # noqa: F401
from recipes.miniature import REPOSITORY

PATIENCE = 300  # seconds after which a test gives up on a process that should have ended long ago


@dataclass
class Recipe:
    """A recipe running as a process of its own; `stdout`, `stderr` are what it has said so far."""

    pid: int
    directory: Path
    output: Path
    ask: Callable[[dict], Any]
    status: int | None = None

    @property
    def stdout(self) -> str:
        return Path(f"{self.output}.stdout").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self.output}.stderr").read_text()

    @property
    def record(self) -> dict:
        return json.loads((self.directory / "run.json").read_text())

    def send(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        if self.status is None:
            self.status = self.ask({"wait": self.pid})
        return self.status

    def wait(self, until: Callable[[], Any] | None = None) -> int | None:
        """Its exit status, or minus the signal that ended it; or, with `until`, as soon as that is true."""
        began = time.monotonic()
        while self.poll() is None and not (until and until()):
            if time.monotonic() - began > PATIENCE:
                os.killpg(self.pid, signal.SIGKILL)
                pytest.fail(f"still running after {PATIENCE} s:\n{self.stdout[-2000:]}\n{self.stderr[-2000:]}")
            time.sleep(0.01)
        return self.status


@pytest.fixture(scope="session")
def zygote():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    turn = threading.Lock()  # a test may watch two recipes at a time

    def ask(job: dict) -> Any:
        with turn:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

    assert process.stdout.readline() == "ready\n"
    yield ask
    process.stdin.close()
    process.wait()


@pytest.fixture
def start_recipe(zygote, tmp_path):
    """`start_recipe(name, directory, settings, prelude="", **environment)`: recipes/<name>.py on its nano YAML into `directory`.

    `prelude` is Python that the process runs first, to do it harm from inside.
    """
    running: list[Recipe] = []
    number = itertools.count()

    def start(name: str, directory: Path, settings: dict[str, Any], prelude: str = "", **environment: str) -> Recipe:
        line = ["--config", str(REPOSITORY / "recipes" / "nano" / f"{name}.yaml")]
        for key, value in {**settings, "output_dir": str(directory)}.items():
            line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        job = {"recipe": name, "arguments": line, "directory": str(tmp_path), "prelude": prelude, "environment": environment}
        job["output"] = str(tmp_path / f"said-{next(number)}")
        for end in ("stdout", "stderr"):
            Path(f"{job['output']}.{end}").touch()
        running.append(Recipe(zygote(job), Path(directory), Path(job["output"]), zygote))
        return running[-1]

    yield start
    for recipe in running:
        if recipe.poll() is None:
            os.killpg(recipe.pid, signal.SIGKILL)
            recipe.wait()
