r"""The grader that cannot hang: mathematics is compared in a child process that is killed when it takes too long.

`\boxed{9^{9^{9^9}}}` keeps sympy busy for ever in C code that no signal handler or thread can interrupt. Hence a
child with a memory limit, and a parent that waits for an answer until a deadline. This bounds resources; it is not a
security sandbox. POSIX only. Run as a module, this file is the child.
"""

import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from groundup import answers

# A longer answer is wrong without asking. It also keeps a request within a pipe's 64 KiB (an escaped character takes
# up to 12 bytes), so that writing one never blocks.
LONGEST = 2000


class Verifier:
    """Grades completions against gold answers; one child process, started when the first pair needs mathematics.

    A grade that passes the deadline or kills the child is False, and counted in `timeouts` or `crashes`; the next one
    gets a new child. Safe to use from several threads; a forked copy starts a child of its own.
    """

    def __init__(self, deadline: float = 2.0, memory: int = 2 * 2**30, start_deadline: float = 120.0):
        """`deadline` for one grade and `start_deadline` for the child's imports in seconds; `memory` in bytes."""
        self.deadline, self.memory, self.start_deadline = deadline, memory, start_deadline
        self.timeouts = self.crashes = self.asked = 0
        self._process: subprocess.Popen | None = None
        self._owner = os.getpid()
        self._stop: weakref.finalize | None = None
        self._lock = threading.Lock()

    def grade(self, completion: str, gold: str) -> bool:
        """Whether the final answer of the completion equals the gold one, or the one that a worked gold ends in."""
        return self.grade_batch([completion], [gold])[0]

    def grade_batch(self, completions: list[str], golds: list[str]) -> list[bool]:
        """One grade for each pair. Equal pairs are compared once: a hostile answer costs a group one deadline."""
        known: dict[tuple[str, str], bool] = {}
        grades = []
        for completion, gold in zip(completions, golds, strict=True):
            given, gold = answers.extract(completion), str(gold)
            if given is None:
                grades.append(False)
                continue
            pair = given, answers.extract(gold) or gold
            if pair not in known:
                known[pair] = self._compare(*pair)
            grades.append(known[pair])
        return grades

    def close(self) -> None:
        """End the child. The verifier stays usable: the next question starts a new one."""
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _compare(self, given: str, gold: str) -> bool:
        equal = answers.same(given, gold)
        if equal is None and max(len(given), len(gold)) <= LONGEST:
            with self._lock:
                equal = self._ask(given, gold)
        return bool(equal)

    def _ask(self, given: str, gold: str) -> bool | None:
        """The child's verdict, or None where it gave none."""
        try:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            self.asked += 1
            self._process.stdin.write(json.dumps([given, gold]).encode() + b"\n")  # ASCII: escapes NUL and surrogates
            reply = _read(self._process, self.deadline)
        except BrokenPipeError:
            reply = b""
        except BaseException:  # Ctrl-C, a caller's alarm: a late reply must not be read as the next pair's
            self.close()
            raise
        if reply:
            return json.loads(reply)
        if reply is None:
            self.timeouts += 1
        else:
            self.crashes += 1
        self.close()
        return None

    def _start(self) -> None:
        if self._owner != os.getpid():  # after a fork the child belongs to the parent: leave it alone
            self._owner, self._process, self._stop = os.getpid(), None, None
        self.close()
        source = str(Path(__file__).resolve().parents[1])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",  # else the working directory comes first: recipes/x.py would shadow a library x
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "groundup.verifier", str(os.getpid()), str(self.memory), str(self.deadline)]
        self._process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._stop = weakref.finalize(self, _stop, self._process, os.getpid())  # also runs at exit
        if _read(self._process, self.start_deadline) != b'"ready"\n':
            self.close()
            raise RuntimeError(
                f"the verifier's child process did not start in {self.start_deadline:g} s; its own error is above.\n"
                f"  fix:   see what `{sys.executable} -c 'import math_verify'` says"
            )


@functools.cache
def shared() -> Verifier:
    """This process's verifier: rewards and metrics grade with the same one, so that they cannot differ."""
    return Verifier()


def _stop(process: subprocess.Popen, owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _read(process: subprocess.Popen, seconds: float) -> bytes | None:
    """A line from the child; None when the time is over, empty when the child is gone."""
    poll = select.poll()  # `select.select` fails on descriptors from 1024 on
    poll.register(process.stdout, select.POLLIN)
    end, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            return None
        part = process.stdout.read(4096)
        if not part:
            return b""
        line += part
    return line


# --- The child -------------------------------------------------------------------------------------------------------


def serve(parent: int, memory: int, deadline: float) -> None:
    """Answer each line `[given, gold]` on stdin with `true` or `false` on stdout until stdin or the parent ends."""
    import resource

    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent decides when this child ends
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # what a library prints must not be read as a reply

    equal = _math_verify()
    equal("\\frac{1}{2}", "\\sqrt{4}")  # compiles its grammars now and not within the first deadline
    # After the imports: a numerical library reserves address space for each core when it loads.
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory if most < 0 else min(memory, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), file=replies, flush=True)
    os.dup2(quiet, 2)

    poll = select.poll()
    poll.register(0, select.POLLIN)
    while True:
        # Watched as well as end-of-file, because forked workers of a dead parent can keep its end of the pipe open.
        while not poll.poll(1000):
            if os.getppid() != parent:
                return
        line = sys.stdin.buffer.readline()
        if not line:
            return
        # The kernel ends a grade that runs on after the parent has died. The parent's own deadline is earlier.
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline + 1)
        verdict = equal(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


def _math_verify():
    """The comparison of two answers by math-verify, without its timeouts (SIGALRM handlers, which C code outlasts)."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def read(answer: str) -> list[Any]:
        return parse(rf"\boxed{{{answer}}}", parsing_timeout=None)

    def equal(given: str, gold: str) -> bool:
        return bool(verify(read(gold), read(given), timeout_seconds=None))  # what it cannot compare it calls unequal

    return equal


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
