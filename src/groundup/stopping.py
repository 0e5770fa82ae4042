"""A signal that asks a run to stop: it is noted, and heeded where the run can go on from."""

import ctypes
import os
import signal
import sys

import psutil
from groundup.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # a cluster's scheduler or `kill`; Slurm's `--signal=USR1@120`
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether this process was asked to stop. There is one, as a process has one set of signal handlers: `STOP`.

    Until training begins there is nothing to save, and the signal ends the process at once with `errors.SAVED`; after `defer` it is
    `asked` that says so, and who trains looks at it between two steps (`groundup.saving`).
    """

    def __init__(self):
        self.asked: str | None = None  # the signal's name
        self.deferred, self.owner = False, 0

    def listen(self) -> None:
        """Take the signals over, in the main thread. A launcher that dies then no longer leaves its recipe behind."""
        self.owner = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._heed)
        if sys.platform == "linux" and launched():
            # `accelerate launch` with one process dies of SIGTERM and leaves its child training (commands/launch.py). Only there: a
            # recipe that was started in a shell, with nohup say, may outlive it.
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def defer(self) -> None:
        """From now on signals are noted only."""
        self.deferred = True

    def _heed(self, number: int, frame) -> None:
        if os.getpid() != self.owner:  # a worker that was forked with this handler dies as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.asked = signal.Signals(number).name
        if not self.deferred:
            raise Preempted


STOP = StopRequest()


def launched() -> list[str]:
    """The command line of the `accelerate launch` that started this process; empty under another parent."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    for place, word in enumerate(words):
        if os.path.basename(word) in ("accelerate", "accelerate-launch"):
            return words[place:]
    return []
