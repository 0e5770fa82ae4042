"""A sandbox for code that nobody has read: bubblewrap, resource limits, and a seccomp filter for what these leave open.

Inside there is this interpreter with its standard library, read-only, and a /tmp of its own in memory: no network, no
home, no other process, no environment, no /proc or /dev, no new process or thread. Linux on x86-64 or ARM64 only.

It shares the kernel with the host: a hole in the kernel is a hole in it. What one program takes is limited (`LIMITS`),
the sum over those that run at a time is not.
"""

import contextlib
import functools
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from groundup.errors import InputError

TMP = 16 * 2**20  # bytes of /tmp, all files together
LIMITS = {  # of one process, soft and hard alike
    "CPU": 5,  # seconds
    "AS": 512 * 2**20,  # bytes of address space
    "FSIZE": TMP,
    "NOFILE": 64,
    "NPROC": 0,  # not for root, whom the kernel exempts: see FORBIDDEN
    "CORE": 0,
}
# Processes, threads and namespaces, and memory that no limit counts: clone, fork, vfork, clone3, unshare, then
# shmget, msgget, memfd_create. By the kernel's name of the architecture, for it the number by which seccomp knows it.
FORBIDDEN = {
    "x86_64": (0xC000003E, (56, 57, 58, 435, 272, 29, 68, 319)),
    "aarch64": (0xC00000B7, (220, 435, 97, 194, 186, 279)),
}
SET_LIMITS = f"""\
import resource
for name, most in {LIMITS}.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
del name, most, resource
"""
INSTALL = "install bubblewrap 0.8 or newer (`apt install bubblewrap`, `dnf install bubblewrap`), or leave this reward out"


class Sandbox:
    """Starts Python programs under the bubblewrap binary `bwrap`."""

    def __init__(self, bwrap: str):
        python, prefix = os.path.realpath(sys.executable), sys.base_prefix
        system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", f"{prefix}/lib", f"{prefix}/lib64", python]
        self._command = [
            *(bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"),
            *("--cap-drop", "ALL", "--die-with-parent", "--new-session", "--size", str(TMP), "--tmpfs", "/tmp"),
            *(word for path in dict.fromkeys(system) for word in ("--ro-bind-try", path, path)),
            *("--remount-ro", "/", "--chdir", "/tmp"),
        ]
        # As `-I` isolates, except that the environment, which is ours, is read: one order of sets in every run.
        self._python = [python, "-s", "-S", "-P", "-c"]
        self._filter = _filter(*FORBIDDEN[platform.machine()])

    def start(self, source: str, *arguments: str, pass_fds: tuple[int, ...] = (), **popen) -> subprocess.Popen:
        """A process that runs `source` within the limits; its death, or that of the calling thread, ends all of it."""
        reader, writer = os.pipe()
        try:
            os.write(writer, self._filter)
            os.close(writer)
            return subprocess.Popen(
                [*self._command, "--seccomp", str(reader), *self._python, SET_LIMITS + source, *arguments],
                pass_fds=(*pass_fds, reader),
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                **popen,
            )
        finally:
            os.close(reader)


@functools.cache
def proven_sandbox() -> Sandbox:
    """This process's sandbox, once a program inside it has tried to get out and failed; otherwise an InputError."""
    if sys.platform != "linux" or platform.machine() not in FORBIDDEN:
        raise InputError(f"there is no sandbox for {sys.platform} on {platform.machine()}", fix="use Linux on x86-64 or ARM64")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise InputError("running code of a model needs a sandbox, and `bwrap` is not on the PATH", fix=INSTALL)
    escapes = escapes_of(Sandbox(bwrap))
    if escapes:
        raise InputError(f"the sandbox does not hold: a program in it {', '.join(escapes)}", bwrap, INSTALL)
    return Sandbox(bwrap)


# --- The proof -------------------------------------------------------------------------------------------------------

# What a program may not do, tried by one. It prints what it managed to.
PROBE = """
import json, os, socket, sys, tempfile
port, hidden, forbidden, memory, largest = json.loads(sys.argv[1])
managed = []
def attempt(what, function, *arguments):
    try:
        function(*arguments)
    except (OSError, MemoryError):
        return
    managed.append(what)
def fork():
    if os.fork() == 0:
        os._exit(0)
def write(path):
    with open(path, "x"):
        os.remove(path)
def fill():
    with tempfile.TemporaryFile() as file:
        for _ in range(largest // 2**20 + 1):
            file.write(bytes(2**20))
attempt("reaches the network", socket.create_connection, ("127.0.0.1", port), 1)
if any(name != "lo" for _, name in socket.if_nameindex()):
    managed.append("sees a network interface")
for path in hidden:
    attempt("reads " + path, open, path)
for path in forbidden:
    attempt("writes " + path, write, path)
attempt("starts a process", fork)
attempt("takes too much memory", bytearray, memory)
attempt("writes too much", fill)
if set(os.environ) - {"PYTHONHASHSEED", "LC_ALL", "PWD"}:
    managed.append("sees the environment")
print(json.dumps(managed))
"""


def escapes_of(sandbox: Sandbox) -> list[str]:
    """What a program managed to do in the sandbox that it should not; an InputError where it did not even start."""
    with _canaries() as hidden, socket.create_server(("127.0.0.1", 0)) as server:
        places = [*map(os.path.dirname, hidden), os.path.dirname(os.__file__), "/", "/usr/lib", "/etc"]
        forbidden = [os.path.join(place, "written_by_a_probe") for place in places]
        given = [server.getsockname()[1], hidden, forbidden, 2 * LIMITS["AS"], LIMITS["FSIZE"]]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = sandbox.start(PROBE, json.dumps(given), **pipes)
        try:
            said, complaint = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            said, complaint = b"", b"it did not end within 60 s"
        finally:
            process.kill()
            process.communicate()
    try:
        return json.loads(said)
    except ValueError:
        complaint = complaint.decode(errors="replace").strip()[-300:]
        raise InputError(
            f"the sandbox does not start: {complaint or f'exit status {process.returncode}'}",
            process.args[0],
            f"{INSTALL}; the kernel has to allow user namespaces, which some containers and systems turn off",
        ) from None


@contextlib.contextmanager
def _canaries() -> Iterator[list[str]]:
    """Paths of files that the user can read and a program may not, in the home and where temporary files go."""
    places = [place for place in (Path.home(), tempfile.gettempdir()) if os.access(place, os.W_OK)]
    with contextlib.ExitStack() as stack:
        # In folders of their own: at a path right in /tmp a program may write, to a /tmp of its own.
        paths = [Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)), "canary") for place in places]
        for path in paths:
            path.touch()
        yield [str(path) for path in paths]


def _filter(architecture: int, forbidden: tuple[int, ...]) -> bytes:
    """A program of classic BPF in the form that `bwrap --seccomp` reads: system calls in `forbidden` fail with EPERM.

    A call by another architecture's numbers, such as x32's or those of 32 bits, kills the process.
    """
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # of a word, jumps, return
    kill, fail, allow = 0x80000000, 0x00050001, 0x7FFF0000
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill)]
    steps += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, kill)]
    for number in forbidden:
        steps += [(equal, 0, 1, number), (answer, 0, 0, fail)]
    return b"".join(struct.pack("=HBBI", *step) for step in [*steps, (answer, 0, 0, allow)])
