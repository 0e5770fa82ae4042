"""What jobs need that work in one directory: tasks that each is done by one of them, and a full disk said in words; and work that
is done ahead of whoever asks for it."""

import contextlib
import errno
import fcntl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from groundup.errors import InputError

PAUSE = 1.0  # seconds between looks at what other jobs do


def share(directory: Path, tasks: list[str], done: Callable[[str], bool], do: Callable[[str], Any]) -> None:
    """Have all of `tasks` done, whoever does them: those that no other job is at are done here, then the others are waited for.

    Raises:
        InputError: `directory`, where the claims lie, is gone.
    """
    told = False
    while True:
        for task in tasks:
            if not done(task):
                with claim(directory / f"{task}.claim") as mine:
                    if mine and not done(task):
                        do(task)
        left = [task for task in tasks if not done(task)]
        if not left:
            return
        if not directory.is_dir():
            raise InputError("the directory has vanished", str(directory), "run the same command again: it begins anew")
        if not told:
            print(f"waiting for other jobs: {', '.join(left[:3])}{', ...' * (len(left) > 3)}", flush=True)
            told = True
        time.sleep(PAUSE)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this job may do a task: nobody else holds its lock, which the system takes back when a job dies. Where a file system
    has no locks everybody may; that wastes work and breaks nothing, because files are written aside and renamed."""
    try:
        file = open(path, "w")  # noqa: SIM115
    except FileNotFoundError:  # another job has finished everything, and cleared away
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Say in words that there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        fix = "make room and run the same command again: what is finished is kept"
        raise InputError(f"no room to write: {error.strerror}", str(error.filename or directory), fix) from error


def ahead(items: Iterable, depth: int = 3) -> Iterator:
    """The same items, made in a thread of their own, at most `depth` before they are asked for."""
    iterator, over = iter(items), object()
    thread = ThreadPoolExecutor(1)
    made = deque(thread.submit(next, iterator, over) for _ in range(depth))
    try:
        while (item := made.popleft().result()) is not over:
            made.append(thread.submit(next, iterator, over))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        if hasattr(iterator, "close"):
            iterator.close()


def in_chunks(
    items: Iterator, size: int, most: int = 4096, size_of: Callable[[Any], int] = lambda item: item.size
) -> Iterator[list]:
    """Lists of items of about `size` bytes together."""
    chunk, total = [], 0
    for item in items:
        chunk.append(item)
        total += size_of(item)
        if total >= size or len(chunk) == most:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
