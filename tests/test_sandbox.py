"""A program in the sandbox reaches nothing outside and takes no more than its share; one that leaks is refused."""

import os
import platform
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from groundup import sandbox as module
from groundup.errors import InputError
from groundup.sandbox import LIMITS, Sandbox, escapes_of, proven_sandbox


def said(sandbox, source):
    """What a program prints, and its exit status."""
    process = sandbox.start(source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate()
    return output.decode().strip(), process.returncode


def test_probe_finds_no_way_out(sandbox):
    assert escapes_of(sandbox) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.fork()",
        "import threading; threading.Thread(target=print).start()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
        "import os; os.memfd_create('x')",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",  # a user namespace, where one is root again
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
        "import os; os.setuid(0)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "x = bytearray(10**9)",
        "open('/proc/self/environ').read()",
        "open('/etc/passwd').read()",
        "open('/dev/null').read()",
        "open('/usr/x', 'w')",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import numpy",
        "open('/tmp/x', 'wb').write(bytes(17 * 2**20))",
        "for i in range(3): open(f'/tmp/{i}', 'wb').write(bytes(7 * 2**20))",
    ],
)
def test_what_a_program_may_not_do(sandbox, source):
    output, status = said(sandbox, f"print('begun', flush=True)\n{source}\nprint('done')")
    assert output.startswith("begun") and "done" not in output and status != 0


def test_what_a_program_may_do(sandbox):
    source = "import json, math, re, collections, tempfile\nopen('/tmp/x', 'w').write('y')\nprint(open('/tmp/x').read(), 2**100)"
    assert said(sandbox, source) == (f"y {2**100}", 0)
    assert said(sandbox, "print(open('/tmp/x').read())")[1] != 0  # nothing is left for the next one


def test_sets_have_one_order_in_every_run(sandbox):
    source = "print({str(n) for n in range(50)})"
    assert said(sandbox, source) == said(sandbox, source)


def test_endless_program_is_ended_by_its_cpu_time(sandbox):
    patient = (
        f"import signal, time\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile time.process_time() < {2 * LIMITS['CPU']}: pass"
    )
    assert said(sandbox, patient)[1] != 0


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


PARENT = """
import subprocess, sys, time
from groundup.sandbox import proven_sandbox
source = "import time; print('runs', flush=True); time.sleep(1000)"
process = proven_sandbox().start(source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
process.stdout.readline()
print("ready", flush=True)
time.sleep(1000)
"""


def test_no_orphan(sandbox):
    source = str(Path(__file__).parents[1] / "src")
    environment = os.environ | {"PYTHONPATH": source}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout.readline() == "ready\n"
        below = descendants(parent.pid)
        assert len(below) >= 2 and all(map(alive, below))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(300):
        if not any(map(alive, below)):
            return
        time.sleep(0.1)
    pytest.fail("a program outlived the one that started it")


# --- Refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_bwrap(tmp_path, monkeypatch):
    """Puts a script called bwrap on the PATH, alone."""

    def write(script):
        path = tmp_path / "bwrap"
        path.write_text(f"#!{sys.executable}\n{script}")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    proven_sandbox.cache_clear()
    yield write
    proven_sandbox.cache_clear()


def test_without_bubblewrap(fake_bwrap):
    with pytest.raises(InputError, match="`bwrap` is not on the PATH\n.*apt install bubblewrap"):
        proven_sandbox()


def test_bubblewrap_that_isolates_nothing_is_found_out(fake_bwrap):
    fake_bwrap(
        "import os, sys\npython = sys.argv.index(os.path.realpath(sys.executable), sys.argv.index('--seccomp'))\n"
        "os.execve(sys.argv[python], sys.argv[python:], os.environ | {'SECRET': 'x'})"
    )
    with pytest.raises(InputError, match="does not hold") as caught:
        proven_sandbox()
    for escape in ("reaches the network", "/canary", "written_by_a_probe", "sees the environment"):
        assert escape in caught.value.what
    assert not list(Path.home().glob("written_by_a_probe")) and not list(Path.home().glob("*/written_by_a_probe"))


def test_bubblewrap_that_fails_is_quoted(fake_bwrap):
    fake_bwrap("import sys\nsys.exit('bwrap: No permissions to create new namespace')")
    with pytest.raises(InputError, match="does not start: bwrap: No permissions to create new namespace(.|\n)*user namespaces"):
        proven_sandbox()


def test_bubblewrap_that_says_nothing_is_refused(fake_bwrap):
    fake_bwrap("")
    with pytest.raises(InputError, match="does not start: exit status 0"):
        proven_sandbox()


def test_other_machines_are_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    proven_sandbox.cache_clear()
    with pytest.raises(InputError, match="no sandbox for linux on riscv64"):
        proven_sandbox()


def run_filter(program: bytes, architecture: int, number: int) -> int:
    """What the kernel's machine for classic BPF returns on a system call; only what `_filter` uses of it."""
    steps = list(struct.iter_unpack("=HBBI", program))
    value = counter = 0
    while True:
        code, if_true, if_false, constant = steps[counter]
        counter += 1
        if code == 0x20:
            value = {0: number, 4: architecture}[constant]
        elif code == 0x06:
            return constant
        else:
            counter += if_true if (value == constant if code == 0x15 else value >= constant) else if_false


@pytest.mark.parametrize("machine", module.FORBIDDEN)
def test_filter_forbids_what_is_listed_and_nothing_else(machine):
    architecture, forbidden = module.FORBIDDEN[machine]
    program = module._filter(architecture, forbidden)
    for number in range(500):
        assert run_filter(program, architecture, number) == (0x00050001 if number in forbidden else 0x7FFF0000)
    assert run_filter(program, architecture, 0x40000000 + 57) == run_filter(program, 0x40000003, 2) == 0x80000000


def test_nothing_of_the_home_is_bound_but_the_interpreter():
    command = Sandbox("bwrap")._command
    bound = {command[i + 1] for i, word in enumerate(command) if word == "--ro-bind-try"}
    assert not bound & {"/", "/usr", "/etc", "/home", str(Path.home()), sys.prefix}
