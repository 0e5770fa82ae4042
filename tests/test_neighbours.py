"""Who looks after whom: a process that stands still is ended by those beside it, and one that goes on is not."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from groundup import neighbours
from groundup.neighbours import watch_neighbours


@pytest.fixture
def neighbour(monkeypatch):
    monkeypatch.setattr(neighbours, "INTERVAL", 0.02)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def stop(process) -> None:
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def test_one_that_stands_still_is_ended_and_named(neighbour, capfd):
    stop(neighbour)
    neighbours._look({neighbour.pid: 3}, timeout=0.1)
    assert neighbour.wait() == -signal.SIGKILL
    told = f"error: process 3 (pid {neighbour.pid}) has stood still for 0 s; it is ended, and the run with it\n"
    assert capfd.readouterr().err == told


def test_one_that_is_gone_is_no_longer_looked_at(neighbour, capfd):
    neighbour.kill()
    neighbour.wait()
    neighbours._look({neighbour.pid: 1}, timeout=0.0)
    assert capfd.readouterr().err == ""


def looks(monkeypatch, times, steps) -> None:
    """`_look` with a clock of our own, and something done at some of its looks."""
    clock = iter(times)

    def sleep(seconds):
        steps.pop(0)()

    monkeypatch.setattr(neighbours, "time", type("Clock", (), {"monotonic": lambda: next(clock), "sleep": sleep}))


def test_one_that_goes_on_in_time_is_left_alone(neighbour, monkeypatch):
    monkeypatch.setattr(neighbours, "INTERVAL", 1.0)

    def go_on():
        neighbour.send_signal(signal.SIGCONT)
        while psutil.Process(neighbour.pid).status() == psutil.STATUS_STOPPED:
            time.sleep(0.001)

    def end():
        assert neighbour.poll() is None
        neighbour.kill()
        neighbour.wait()

    steps = [lambda: stop(neighbour), lambda: None, go_on, lambda: stop(neighbour), lambda: None, end]
    looks(monkeypatch, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], steps)
    neighbours._look({neighbour.pid: 1}, timeout=2.0)  # stopped for 1 s twice
    assert not steps


def test_nobody_is_to_blame_when_this_process_stood_still_too(neighbour, monkeypatch):
    monkeypatch.setattr(neighbours, "INTERVAL", 1.0)

    def end():
        assert neighbour.poll() is None
        neighbour.kill()
        neighbour.wait()

    steps = [lambda: stop(neighbour), lambda: None, end]
    looks(monkeypatch, [0.0, 1.0, 100.0, 101.0], steps)
    neighbours._look({neighbour.pid: 1}, timeout=10.0)


@pytest.mark.parametrize(("timeout", "initialized", "world"), [(0.0, True, 2), (5.0, False, 1), (5.0, True, 1)])
def test_nothing_is_watched_alone_or_unasked(monkeypatch, timeout, initialized, world):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(neighbours.threading, "Thread", lambda **_: pytest.fail("watched"))
    watch_neighbours(timeout)


def test_only_neighbours_on_this_machine_are_watched(monkeypatch):
    host, watched = neighbours.socket.gethostname(), []
    everyone = [(host, os.getpid(), 0), (host, 11, 1), ("elsewhere", 12, 2)]

    def gather(into, mine):
        assert mine == everyone[0]
        into[:] = everyone

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

    class Thread:
        def __init__(self, target, args, daemon):
            watched.append(args)
            assert daemon

        def start(self):
            watched.append("started")

    monkeypatch.setattr(neighbours.threading, "Thread", Thread)
    watch_neighbours(5.0)
    assert watched == [({11: 1}, 5.0), "started"]
