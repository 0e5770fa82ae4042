"""Jobs that work in one directory, and work that is done ahead."""

import errno
import multiprocessing
import os
import shutil
import threading
import time

import pytest
from groundup import jobs
from groundup.errors import InputError
from groundup.jobs import ahead, claim, full_disk, share

# ---- Tasks


def test_every_task_is_done_and_none_twice(tmp_path):
    done = []
    share(tmp_path, ["a", "b", "c"], done.__contains__, done.append)
    assert done == ["a", "b", "c"]
    share(tmp_path, ["a", "b", "c"], done.__contains__, lambda _: pytest.fail("done again"))


def test_task_of_another_job_is_waited_for(tmp_path, monkeypatch, capsys):
    """In the meantime the others are done here."""
    monkeypatch.setattr(jobs, "PAUSE", 0.01)
    done = []
    with claim(tmp_path / "b.claim"):
        there = threading.Thread(target=share, args=(tmp_path, ["a", "b", "c"], done.__contains__, done.append))
        there.start()
        while len(done) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        assert done == ["a", "c"]
    there.join(30)
    assert done == ["a", "c", "b"] and capsys.readouterr().out == "waiting for other jobs: b\n"


def test_directory_that_vanishes_is_not_waited_for(tmp_path):
    directory = tmp_path / "passes"
    directory.mkdir()
    with pytest.raises(InputError, match="the directory has vanished"):
        share(directory, ["a", "b"], lambda _: False, lambda _: shutil.rmtree(directory))


def test_claim_is_given_back_by_a_dead_job(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold():
        with claim(tmp_path / "task.claim") as mine:
            assert mine
            held.set()
            time.sleep(60)

    job = context.Process(target=hold)
    job.start()
    assert held.wait(30)
    with claim(tmp_path / "task.claim") as mine:
        assert not mine
    os.kill(job.pid, 9)
    job.join(30)
    with claim(tmp_path / "task.claim") as mine:
        assert mine
    with claim(tmp_path / "gone" / "task.claim") as mine:
        assert not mine


# ---- A full disk


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# ---- Ahead


def test_ahead_gives_the_same_items_made_in_another_thread():
    made = []
    items = ahead((made.append(threading.get_ident()) or n for n in range(20)), depth=2)
    assert list(items) == list(range(20)) and set(made) != {threading.get_ident()}


def test_ahead_is_no_further_ahead_than_it_may_be():
    made = []
    items = ahead((made.append(n) or n for n in range(100)), depth=2)
    next(items)
    time.sleep(0.3)
    assert len(made) <= 5
    items.close()


def test_ahead_raises_where_items_are_wanted():
    def items():
        yield 1
        raise InputError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(InputError, match="broken"):
        next(found)


def test_ahead_stops_with_whoever_asks():
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    before = threading.active_count()
    found = ahead(ahead(items()))
    next(found)
    found.close()
    assert closed.wait(5)
    time.sleep(0.3)
    assert threading.active_count() <= before
