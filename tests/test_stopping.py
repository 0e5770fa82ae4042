"""A signal is noted, and heeded at once only where there is nothing to save."""

import os
import signal
import subprocess
import sys

import pytest
from groundup.errors import SAVED, Preempted
from groundup.stopping import SIGNALS, StopRequest


@pytest.fixture
def request_to_stop():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_training_the_process_ends_at_once(request_to_stop, number):
    request_to_stop.listen()
    with pytest.raises(Preempted) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == SAVED == 75 and request_to_stop.asked == signal.Signals(number).name


@pytest.mark.parametrize("number", SIGNALS)
def test_in_training_it_is_noted(request_to_stop, number):
    request_to_stop.listen()
    request_to_stop.defer()
    assert request_to_stop.asked is None
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert request_to_stop.asked == signal.Signals(number).name


def test_another_signal_is_left_alone(request_to_stop):
    before = signal.getsignal(signal.SIGINT)
    request_to_stop.listen()
    assert signal.getsignal(signal.SIGINT) is before


def test_forked_worker_dies_of_it_as_it_would_have(request_to_stop):
    request_to_stop.listen()
    request_to_stop.defer()
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert request_to_stop.asked is None


RECIPE = """
import os, time
from groundup.stopping import StopRequest
request, parent = StopRequest(), os.getppid()
request.listen()
request.defer()
print("listening", flush=True)
while request.asked is None and os.getppid() == parent:
    os.sched_yield()
time.sleep(1)  # a child has its new parent an instant before the signal that tells it so
print(request.asked, flush=True)
"""
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize(("launcher", "asked"), [("accelerate", "SIGTERM"), ("shell", "None")])
def test_recipe_is_asked_to_stop_when_its_launcher_dies(tmp_path, launcher, asked):
    """But not when a shell does: it may have been meant to outlive it."""
    (tmp_path / launcher).write_text(PARENT)
    (tmp_path / "recipe.py").write_text(RECIPE)
    command = [sys.executable, tmp_path / launcher, tmp_path / "recipe.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "listening\n"
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == f"{asked}\n"  # to the end of the recipe, which holds the pipe too
