"""No model output can stop, slow without bound, or mislead the grader."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from groundup.verifier import Verifier

HOSTILE = {
    "power tower": r"\boxed{9^{9^{9^9}}}",
    "issue 65": r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}",
    "factorial": r"\boxed{100000000!}",
    "factorial of a factorial": r"\boxed{((99999!)!)!}",
    "many digits": r"\boxed{" + "9" * 100_000 + "}",
    "1,900 digits": r"\boxed{" + "9" * 1900 + "^2}",
    "3000 brackets": r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    "900 brackets": r"\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{1+" * 150 + "1" + "}" * 150 + "}",
    "huge sum": r"\boxed{\sum_{k=1}^{10^{9}} \frac{1}{k^{k}}}",
    "integral": r"\boxed{\int_0^1 \sin(\cos(x^{x^{x}})) e^{x^{x}} dx}",
    "huge product": r"\boxed{\prod_{k=1}^{10000000} (k^2+1)}",
    "NUL bytes": "\\boxed{\x00\x00 + 7\x00}",
    "right to left": "\\boxed{\u202e\u0661\u0662\u0663 + x\u202c}",
    "emoji": "\\boxed{🍎🍎 + 🍐^2}",
    "lone surrogate": "\\boxed{\ud800 + x}",
    "5000 boxes": r"\boxed{x+1}" * 5000,
    "5000 open boxes": r"\boxed{" * 5000,
    "code": r"\boxed{__import__('os').system('touch /tmp/owned')}",
    "line ends": "\\boxed{x\n\r\u2028[1]\n}",
    "empty": r"\boxed{}",
    "one backslash": "\\boxed{\\}",
    "only text": "I do not know.",
}


STUCK = r"\boxed{9^{9^{9^9}}}", "y+1"  # runs for longer than anyone waited
HONEST = r"\boxed{\sqrt{8}}", r"2\sqrt{2}"


@pytest.fixture(scope="module")
def verifier():
    with Verifier(deadline=0.5) as verifier:
        yield verifier


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_is_wrong_and_the_next_one_is_graded(verifier, name):
    assert verifier.grade(HOSTILE[name], r"\frac{3}{x}") is False
    for _ in range(3):  # a loaded machine may take longer than half a second for an honest one
        if verifier.grade(r"So it is \boxed{\frac{9}{3x}}.", r"\frac{3}{x}"):
            return
    pytest.fail("an honest answer was graded wrong")


def test_what_was_killed_was_counted(verifier):
    before = verifier.timeouts + verifier.crashes
    assert verifier.grade_batch([STUCK[0]] * 50, [STUCK[1]] * 50) == [False] * 50
    assert verifier.timeouts + verifier.crashes == before + 1  # one deadline for fifty equal answers


def test_grades(verifier):
    completions = ["Answer: 12", "Answer: 13", r"\boxed{\sqrt{8}}", "no answer 12", r"\boxed{6+6}", "#### 1,200"]
    golds = ["12", "12", r"2\sqrt{2}", "12", "12", "6 boxes of 200 are 1200\n#### 1200"]
    assert verifier.grade_batch(completions, golds) == [True, False, True, False, False, True]
    with pytest.raises(ValueError):
        verifier.grade_batch(["Answer: 1"], [])


def test_plain_answers_need_no_child():
    verifier = Verifier()
    assert verifier.grade("Answer: 7 apples", "7")
    assert not verifier.grade("Answer: Paris", "London")
    assert verifier._process is None and verifier.asked == 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads limits from /proc")
def test_memory_is_limited():
    with Verifier(deadline=10, memory=512 * 2**20) as verifier:
        assert verifier.grade(*HONEST)
        limits = Path(f"/proc/{verifier._process.pid}/limits").read_text()
        assert f"Max address space         {512 * 2**20} " in limits


def test_child_that_dies_idle_is_replaced():
    with Verifier(deadline=10) as verifier:
        assert verifier.grade(*HONEST)
        for number in (signal.SIGINT, signal.SIGTERM):  # of a whole process group: not for the child to obey
            verifier._process.send_signal(number)
        process = verifier._process
        assert verifier.grade(*HONEST) and verifier._process is process
        verifier._process.kill()
        verifier._process.wait()
        assert verifier.grade(*HONEST)
        assert verifier.crashes == 0


def test_child_that_dies_at_work_is_counted_and_replaced():
    with Verifier(deadline=60) as verifier:
        assert verifier.grade(*HONEST)
        timer = threading.Timer(0.3, verifier._process.kill)
        timer.start()
        assert verifier.grade(*STUCK) is False
        assert (verifier.crashes, verifier.timeouts) == (1, 0)
        assert verifier.grade(*HONEST)


def test_forked_copy_leaves_the_child_alone():
    with Verifier(deadline=10) as verifier:
        assert verifier.grade(*HONEST)
        child = os.fork()
        if child == 0:
            fine = verifier.grade(r"\boxed{\sqrt{18}}", r"3\sqrt{2}")
            verifier.close()
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        process = verifier._process
        assert verifier.grade(*HONEST) and verifier._process is process


def test_child_that_cannot_start_says_so(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="did not start"):
        Verifier().grade(*HONEST)


def test_start_that_is_broken_off_leaves_no_child_that_answers_late(monkeypatch):
    """An alarm of the caller's while the child imports: its "ready" is not the next pair's verdict."""
    with Verifier() as verifier:

        def alarm(process, seconds):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("groundup.verifier._read", alarm)
            with pytest.raises(KeyboardInterrupt):
                verifier.grade(*HONEST)
        assert not verifier.grade(r"\boxed{\sqrt{18}}", r"2\sqrt{2}")


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be collected by the container's init does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> bool:
    for _ in range(300):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


PARENT = r"""
import sys, threading, time
from groundup.verifier import Verifier
v = Verifier(deadline=2)
assert v.grade(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
print(v._process.pid, flush=True)
if sys.argv[1] == "busy":
    threading.Timer(0.2, lambda: print("asked", flush=True)).start()
    v.grade(r"\boxed{9^{9^{9^9}}}", "y+1")
elif sys.argv[1] == "idle":
    print("asked", flush=True)
    time.sleep(100)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads process states from /proc")
@pytest.mark.parametrize("state", ["idle", "busy", "exit"])
def test_no_orphan(state):
    source = str(Path(__file__).parents[1] / "src")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    ) as parent:
        child = int(parent.stdout.readline())
        if state != "exit":
            assert parent.stdout.readline() == "asked\n" and alive(child)
            parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for_end(child)
