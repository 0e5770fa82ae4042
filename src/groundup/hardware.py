"""Devices that a run is planned for: memory, arithmetic, bandwidth and rent, from the table below or from this machine."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from groundup.errors import InputError


@dataclass(frozen=True)
class Device:
    """What one device can do. `None`: not known, and nothing is computed from it.

    memory: bytes that a process can use; bf16, fp32: dense peak, FLOP/s; bandwidth: of its memory, bytes/s;
    dollars: rent an hour.
    """

    name: str
    memory: int
    bf16: float | None
    fp32: float | None
    bandwidth: float | None
    dollars: float | None
    kind: str = "cuda"


MIB = 2**20
# Memory: total as `nvidia-smi` or `rocm-smi` reports it. Peaks (dense, fp32 without TF32) and bandwidth: the makers' data sheets.
# Rent: the middle of what specialised clouds asked on demand in May 2026 (mercatus-ai.com/blog/cloud-gpu-pricing); it moves, so
# `--price` takes yours, and where none is given here none was found.
DEVICES = {
    device.name: device
    for device in (
        Device("B200", 183359 * MIB, 2250e12, 80e12, 8.0e12, None),
        Device("H200", 143771 * MIB, 989e12, 67e12, 4.8e12, 4.00),
        Device("H100", 81559 * MIB, 989e12, 67e12, 3.35e12, 3.00),
        Device("A100-80GB", 81920 * MIB, 312e12, 19.5e12, 2.039e12, 1.30),
        Device("A100-40GB", 40960 * MIB, 312e12, 19.5e12, 1.555e12, None),
        Device("L40S", 46068 * MIB, 362e12, 91.6e12, 864e9, None),
        Device("L4", 23034 * MIB, 121e12, 30.3e12, 300e9, None),
        Device("A10G", 23028 * MIB, 125e12, 31.2e12, 600e9, None),
        Device("RTX-4090", 24564 * MIB, 165e12, 82.6e12, 1.008e12, None),
        Device("MI300X", 196592 * MIB, 1307e12, 163.4e12, 5.3e12, None),
    )
}


def named_device(name: str) -> Device:
    """The device of the table that `name` (`H100`, `NVIDIA A100-SXM4-80GB`) stands for.

    Raises:
        InputError: none, with the names there are.
    """

    def words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]+\d+[a-z]*|\d+gb|\d{4}", text.casefold()))

    wanted = words(name)
    if "a100" in wanted and not wanted & {"40gb", "80gb"}:
        wanted.add("80gb")
    for device in DEVICES.values():
        if words(device.name) <= wanted:
            return device
    raise InputError(f"`--gpu {name}` is not in the table", fix=f"write one of {', '.join(DEVICES)}; leave it out for this machine")


def this_device(processes: int = 1) -> Device:
    """The first accelerator of this machine, or its CPU: memory that can still be had, shared by `processes` on a CPU."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        try:
            known = named_device(properties.name)
        except InputError:
            known = Device(properties.name, 0, None, None, None, None)
        return replace(known, name=properties.name, memory=properties.total_memory)
    own = psutil.Process().memory_info().rss
    room = min(psutil.virtual_memory().available, *_cgroup_room()) + own
    return Device("this CPU", room // processes, None, None, None, None, kind="cpu")


def _cgroup_room() -> list[int]:
    """What the container or the batch system leaves, in bytes; empty where it sets no limit."""
    room = []
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            text = (Path("/sys/fs/cgroup") / limit).read_text().strip()
            if text != "max":
                room.append(int(text) - int((Path("/sys/fs/cgroup") / used).read_text()))
        except (OSError, ValueError):
            continue
    return room


def free_disk(path: str | Path) -> int:
    """Bytes free where `path` is or will be."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def peak_memory() -> int:
    """The most memory this process has held so far: allocated on the GPU where there is one, else resident, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:  # not ru_maxrss: that of the process which started this one is carried over
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
