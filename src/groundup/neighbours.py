"""The other processes of a run on this machine: one that stands still ends the run, where it would wait for ever."""

import os
import signal
import socket
import sys
import threading
import time

import psutil
import torch.distributed

INTERVAL = 1.0  # seconds between looks


def watch_neighbours(timeout: float) -> None:
    """Look at the processes of this run on this machine from a thread. One that has been stopped (SIGSTOP, a debugger, a cluster's
    suspension) for `timeout` seconds is killed; the launcher then ends the others, which otherwise sit in a collective until
    `ddp_timeout`, half an hour. One that dies is the launcher's to see. Nothing is watched with `timeout` 0 or one process.
    """
    if not timeout or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    mine = (socket.gethostname(), os.getpid(), torch.distributed.get_rank())
    everyone: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    neighbours = {pid: rank for host, pid, rank in everyone if host == mine[0] and pid != mine[1]}
    if neighbours:
        threading.Thread(target=_look, args=(neighbours, timeout), daemon=True).start()


def _look(neighbours: dict[int, int], timeout: float) -> None:
    stopped: dict[int, float] = {}
    last = time.monotonic()
    while neighbours:
        time.sleep(INTERVAL)
        now = time.monotonic()
        if now - last > 3 * INTERVAL:  # this process stood still too: a terminal's ^Z, and nobody is to blame
            stopped.clear()
        last = now
        for pid, rank in list(neighbours.items()):
            try:
                still = psutil.Process(pid).status() == psutil.STATUS_STOPPED
            except psutil.NoSuchProcess:
                del neighbours[pid]
                continue
            since = stopped.setdefault(pid, now) if still else stopped.pop(pid, now)
            if still and now - since >= timeout:
                print(
                    f"error: process {rank} (pid {pid}) has stood still for {timeout:.0f} s; it is ended, and the run with it",
                    file=sys.stderr,
                    flush=True,
                )
                os.kill(pid, signal.SIGKILL)
                return
