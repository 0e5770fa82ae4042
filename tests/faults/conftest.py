import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from recipes.conftest import rungs  # noqa: F401
from recipes.miniature import REPOSITORY

SPLIT = {"per_device_train_batch_size": 2}  # of each of two processes
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


@contextlib.contextmanager
def recipes_in(zygote, folder: Path):
    """What `start_recipe` is, with what recipes say in `folder`; none is left at the end."""
    running: list[Recipe] = []
    number = itertools.count()

    def start(name: str, directory: Path, settings: dict[str, Any], prelude: str = "", **environment: str) -> Recipe:
        line = ["--config", str(REPOSITORY / "recipes" / "nano" / f"{name}.yaml"), *as_arguments(settings, directory)]
        job = {"recipe": name, "arguments": line, "directory": str(folder), "prelude": prelude, "environment": environment}
        job["output"] = str(folder / f"said-{next(number)}")
        for end in ("stdout", "stderr"):
            Path(f"{job['output']}.{end}").touch()
        running.append(Recipe(zygote(job), Path(directory), Path(job["output"]), zygote))
        return running[-1]

    yield start
    for recipe in running:
        if recipe.poll() is None:
            os.killpg(recipe.pid, signal.SIGKILL)
            recipe.wait()


def as_arguments(settings: dict[str, Any], directory: Path) -> list[str]:
    """Settings as one would type them."""
    words = []
    for key, value in {**settings, "output_dir": str(directory)}.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return words


@pytest.fixture
def start_recipe(zygote, tmp_path):
    """`start_recipe(name, directory, settings, prelude="", **environment)`: recipes/<name>.py on its nano YAML into `directory`.

    `prelude` is Python that the process runs first, to do it harm from inside (faults/harm.py).
    """
    with recipes_in(zygote, tmp_path) as start:
        yield start


def pair(start: Callable, name: str, directory: Path, settings: dict[str, Any], *preludes: str) -> list[Recipe]:
    """A recipe as the two processes of one run, in the world that torchrun makes; each may have a prelude."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = zip("01", preludes or ("", ""), strict=True)
    return [start(name, directory, settings, prelude, **world, RANK=rank, LOCAL_RANK=rank) for rank, prelude in both]


@pytest.fixture(scope="session")
def whole_pair(rungs, zygote, tmp_path_factory):  # noqa: F811
    """What a run of two processes comes to when nothing happens to it."""
    directory = tmp_path_factory.mktemp("whole")
    with recipes_in(zygote, directory) as start:
        both = pair(start, "sft", directory / "sft", rungs.settings("sft") | SPLIT)
        assert [recipe.wait() for recipe in both] == [0, 0], both[0].stderr + both[1].stderr
    return directory / "sft"


@pytest.fixture
def start_pair(start_recipe):
    """`start_pair(name, directory, settings, *preludes)`, see `pair`."""
    return functools.partial(pair, start_recipe)


@pytest.fixture
def launch(tmp_path):
    """`launch(config, name, directory, settings)`: `accelerate launch` of a recipe; its process, whose output is in `said`."""
    started = []

    def start(config: str, name: str, directory: Path, settings: dict[str, Any]) -> subprocess.Popen:
        accelerate, recipes = Path(sys.executable).with_name("accelerate"), REPOSITORY / "recipes"
        command = [accelerate, "launch", "--config_file", REPOSITORY / "accelerate_configs" / f"{config}.yaml"]
        command += [recipes / f"{name}.py", "--config", recipes / "nano" / f"{name}.yaml", *as_arguments(settings, directory)]
        with open(tmp_path / "said", "w") as said:
            process = subprocess.Popen(
                [*map(str, command)], stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        started.append((process, directory))
        return process

    yield start
    for process, directory in started:
        for left in processes_of(directory):
            left.kill()
        process.wait()


def processes_of(directory: Path) -> list[psutil.Process]:
    """All that have the directory on their command line, a launcher and its recipes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(directory) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(true: Callable[[], Any], what: str) -> None:
    """Look again and again."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > PATIENCE:
            pytest.fail(f"in vain: {what}")
        time.sleep(0.05)
