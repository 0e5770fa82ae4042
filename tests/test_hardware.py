import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from groundup import hardware
from groundup.errors import InputError
from groundup.hardware import DEVICES, free_disk, named_device, peak_memory, this_device


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H100", "H100"),
        ("h200", "H200"),
        ("A100", "A100-80GB"),
        ("A100-40GB", "A100-40GB"),
        ("L4", "L4"),
        ("L40S", "L40S"),
        ("4090", "RTX-4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_devices_by_name(name, found):
    assert named_device(name).name == found


@pytest.mark.parametrize("name", ["H1000", "B20", "L400", "", "GPU"])
def test_unknown_devices_are_told(name):
    with pytest.raises(InputError, match="is not in the table") as refused:
        named_device(name)
    assert "H100" in str(refused.value)


def test_table_is_in_bytes_and_flops():
    for device in DEVICES.values():
        assert 20e9 < device.memory < 300e9 and 1e11 < device.bandwidth < 1e13
        assert 1e13 < device.fp32 < device.bf16 < 1e16


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_a_cpu_has_what_is_left_and_shares_it(monkeypatch):
    monkeypatch.setattr(hardware, "_cgroup_room", lambda: [10 * 2**30])
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(20 * 2**30))
    alone = this_device()
    assert 10 * 2**30 < alone.memory < 15 * 2**30 and alone.kind == "cpu"  # the limit of the container, and what this process has
    assert this_device(4).memory == pytest.approx(alone.memory / 4, rel=0.01)


def test_disk_is_that_of_the_nearest_directory(tmp_path):
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_peak_memory_is_this_process_s_own():
    """Not that of the process which started it, though it was larger."""
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory() > 300e6
    code = "from groundup.hardware import peak_memory; a = peak_memory(); b = bytearray(10**8); b[::4096] = b'x' * len(b[::4096])"
    code += "\nprint(a, peak_memory())"
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 90e6 < after - before < 200e6 and before < 1e9
