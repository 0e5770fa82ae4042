"""A process that has imported what recipes import, and forks a recipe for each line on its standard input.

A recipe that starts so is a process of its own, with its signals, exit status and files, without ten seconds of imports. It forks
before PyTorch has computed anything; after that a fork would not be safe.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import datasets  # noqa: F401
import groundup.grpo
import groundup.ppo
import groundup.pretraining
import groundup.rewards
import groundup.sft
import groundup.stage  # noqa: F401
import torch  # noqa: F401
import trl

RECIPES = Path(__file__).parents[2] / "recipes"
for name in ("SFTTrainer", "RewardTrainer", "DPOTrainer"):  # TRL imports its trainers when they are asked for
    getattr(trl, name)


def become(job: dict) -> None:
    """Run a recipe in this process, which ends with it."""
    os.setsid()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{job['output']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.close(0)
    os.environ.update(job["environment"])
    os.chdir(job["directory"])
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
    path = str(RECIPES / f"{job['recipe']}.py")
    sys.argv = [path, *job["arguments"]]
    status = 1
    try:
        if job["prelude"]:
            exec(job["prelude"], {"__name__": "prelude"})
        runpy.run_path(path, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            pid, status = os.waitpid(job["wait"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(json.dumps(pid), flush=True)
        else:
            become(job)


if __name__ == "__main__":
    main()
