"""Unit tests of a program, with a verdict that the program cannot forge.

Program and tests run in two interpreters, each in a sandbox of its own (`groundup.sandbox`), joined by two pipes. In the
tests the functions and classes of the program are stand-ins: a call sends its arguments over, and what comes back is
made anew here from its plain values. So the program never sees the tests, cannot touch `assert` or the verdict, and an
object that claims to equal everything equals nothing: all that it can do is return the right values. Hence arguments go by
value (what the program changes in them is not seen), and cannot be functions; what is not plain (a generator, an object of
the program's own class) can be called, iterated, and asked for attributes. What remains: a program may answer the
very arguments tested and no others, and tests that judge by another function of the program trust it.

This file is also what runs inside, so it imports only the standard library.
"""

import builtins
import json
import os
import select
import subprocess
import sys
import tempfile
import textwrap
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LONGEST = 16 * 2**20  # bytes of one message from the program
CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def program_in(reply: str) -> str:
    """The last fenced block of Python, or of no named language; the whole reply where none is closed."""
    last, block, language = reply, None, ""
    for line in reply.split("\n"):
        fence = line.strip()
        if block is None and fence.startswith("```"):
            block, language = [], fence[3:].strip().lower()
        elif block is not None and fence == "```":
            if language in ("", "python", "python3", "py"):
                last = textwrap.dedent("\n".join(block))
            block = None
        elif block is not None:
            block.append(line)
    return last


def run_all(sandbox, jobs: list[tuple[str, str]], deadline: float = 30.0) -> list[bool]:
    """For each pair of program and tests, whether all pass; as many at a time as this process has cores.

    `deadline` is in seconds of the clock for one pair; the sandbox limits its CPU time. Equal pairs run once.
    """
    cores = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    different = list(dict.fromkeys(jobs))
    with ThreadPoolExecutor(cores) as pool:
        passed = dict(zip(different, pool.map(lambda job: passes(sandbox, *job, deadline), different), strict=True))
    return [passed[job] for job in jobs]


def passes(sandbox, program: str, tests: str, deadline: float = 30.0) -> bool:
    """Whether `tests` run to their end against `program`, having called it at least once."""
    source = Path(__file__).read_text(encoding="utf-8")
    (questions, to_program), (replies, to_tests) = os.pipe(), os.pipe()
    processes, quiet = [], subprocess.DEVNULL
    try:
        try:
            with tempfile.TemporaryFile("w+") as job:
                json.dump([program, tests], job)
                job.seek(0)
                ends = replies, to_program
                tester = sandbox.start(source, *map(str, ends), pass_fds=ends, stdin=job, stdout=subprocess.PIPE, stderr=quiet)
                processes.append(tester)
            processes.append(sandbox.start(source, stdin=questions, stdout=to_tests, stderr=quiet))
        finally:  # before the wait: with a copy open here, neither side would see the other end
            for end in (questions, to_program, replies, to_tests):
                os.close(end)
        poll = select.poll()  # `select.select` fails on descriptors from 1024 on
        poll.register(tester.stdout, select.POLLIN)
        return bool(poll.poll(deadline * 1000)) and os.read(tester.stdout.fileno(), 1) == b"+"
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


# --- Between the two -------------------------------------------------------------------------------------------------


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """A plain value, also one of a subclass, as JSON; any other by the number that `refer` has for it."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return ["int", hex(value)]  # decimal ones are limited to 4300 digits
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        return ["dict", *([encode(key, refer), encode(item, refer)] for key, item in value.items())]
    for name, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return [name, *(encode(item, refer) for item in value)]
    return ["object", refer(value)]


def decode(message: Any, referred: Callable[[int], Any]) -> Any:
    """What `encode` made a message of: built-in types only, and what `referred` gives for a number."""
    if not isinstance(message, list):
        return message
    name, *items = message
    if name in CONTAINERS:
        return CONTAINERS[name](decode(item, referred) for item in items)
    if name == "dict":
        return {decode(key, referred): decode(item, referred) for key, item in items}
    if name == "int":
        return int(items[0], 16)
    return {"complex": complex, "bytes": bytes.fromhex, "object": referred}[name](*items)


# --- The program's side ----------------------------------------------------------------------------------------------

OPERATIONS = {
    "call": lambda function, arguments, named: function(*arguments, **named),
    "get": getattr,
    "set": setattr,
    "iterate": iter,
    "next": next,
}


def hold_program() -> None:
    """Run the program that comes first on stdin, then each operation asked for, replying on stdout."""
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for stream in (0, 1):  # the program reads nothing and prints nowhere
        os.dup2(2, stream)
    objects = []

    def refer(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def reply(message: Any) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    module = sys.modules["program"] = types.ModuleType("program")  # dataclasses look their module up
    exec(compile(json.loads(questions.readline()), "program.py", "exec"), vars(module))
    reply([[name, refer(value)] for name, value in list(vars(module).items()) if callable(value)])
    for line in questions:
        try:
            operation, *operands = decode(json.loads(line), objects.__getitem__)
            result = ["returned", encode(OPERATIONS[operation](*operands), refer)]
        except BaseException as error:
            result = ["raised", type(error).__name__]
        reply(result)


# --- The tests' side -------------------------------------------------------------------------------------------------


def hold_tests(replies, questions) -> None:
    """Run the tests on stdin against the program behind the two pipes; write `+` when they have passed."""
    program, tests = json.load(sys.stdin)
    verdict = os.dup(1)
    os.dup2(2, 1)
    asked = 0

    def exchange(message: Any) -> Any:
        questions.write(json.dumps(message).encode() + b"\n")
        questions.flush()
        return json.loads(replies.readline(LONGEST))

    def refer(value: Any) -> int:
        if type(value) is not StandIn:
            raise TypeError(f"cannot hand a {type(value).__name__} to the program")
        return object.__getattribute__(value, "_number")

    def ask(*operation) -> Any:
        nonlocal asked
        asked += 1
        message = encode(operation, refer)  # an error here is the tests' own
        try:
            outcome, value = exchange(message)
            value = decode(value, StandIn)
        except Exception:
            os._exit(1)  # no `except` of the tests may hide that the program is gone
        if outcome == "returned":
            return value
        kind = getattr(builtins, str(value), None)
        raise kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError

    class StandIn:
        __slots__ = ("_number",)

        def __init__(self, number: int):
            object.__setattr__(self, "_number", number)

        def __call__(self, *arguments, **named):
            return ask("call", self, arguments, named)

        def __getattr__(self, name: str):
            if name.startswith("__"):  # Python's own protocols, such as copying
                raise AttributeError(name)
            return ask("get", self, name)

        def __setattr__(self, name: str, value: Any):
            ask("set", self, name, value)

        def __iter__(self):
            return ask("iterate", self)

        def __next__(self):
            return ask("next", self)

    namespace = {"__name__": "tests"}
    for name, number in exchange(program):
        if not name.startswith("_") and not hasattr(builtins, name):  # the program's own `len` must not judge
            namespace[name] = StandIn(number)
    exec(compile(tests, "tests.py", "exec"), namespace)
    if asked:
        os.write(verdict, b"+")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        hold_tests(os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb"))
    else:
        hold_program()
