"""A program passes its tests by returning what they want, and in no other way."""

import math
import random
import select
import subprocess
import sys

import pytest
from groundup.unit_tests import decode, encode, passes, program_in, run_all

ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(2, 3) == 5\nassert add(10, -4) == 6\n"
WRONG = "def add(a, b):\n    return 0\n"
FORGED = {
    "wrong": WRONG,
    "no program": "I do not know.",
    "empty": "",
    "another name": ADD.replace("add", "sum_of"),
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef add(a, b):\n    os._exit(0)",
    "exit politely in the call": "def add(a, b):\n    raise SystemExit(0)",
    "prints a mark": "print('+', flush=True)\nprint('passed')\nimport os\nos._exit(0)",
    "writes a mark everywhere": "import os\nfor fd in range(64):\n"
    "    try:\n        os.write(fd, b'+\\n')\n    except OSError:\n        pass\n",
    "equals everything": "class Any:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
    "def add(a, b):\n    return Any()",
    "number that equals everything": "class Any(int):\n    def __eq__(self, other):\n        return True\n"
    "def add(a, b):\n    return Any()",
    "no assertions": "import builtins\nbuiltins.AssertionError = Exception\n" + WRONG,
    "own built-ins": "def __builtins__(*a):\n    return 1\n" + WRONG,
    "stack": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    frame.f_globals.update(encode=lambda *a: True, hold_program=None)\n    frame = frame.f_back\n" + WRONG,
    "tracing": "import sys\nsys.settrace(lambda *a: None)\n" + WRONG,
    "at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\n" + WRONG,
    "kills everyone": "import os\nos.kill(-1, 9)\nos.kill(os.getppid(), 9)\n" + WRONG,
    "deep nest": "def add(a, b):\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x",
    "circle": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "deep reply": "import os\nfor fd in range(3, 9):\n    try:\n        os.write(fd, b'[' * 50_000 + b'\\n')\n"
    "    except OSError:\n        pass\n" + WRONG,
    "no end of a reply": "import os\nfor fd in range(3, 9):\n    try:\n        while True:\n"
    "            os.write(fd, b'[' * 65536)\n    except OSError:\n        pass\n",
    "other errors": "def add(a, b):\n    raise GeneratorExit",
    "lone surrogate": "def add(a, b):\n    return '\\ud800'",
    "memory": "def add(a, b):\n    return 'x' * 10**9",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "ten gigabytes": "with open('/tmp/x', 'wb') as file:\n    for _ in range(10**4):\n        file.write(bytes(2**20))",
    "odd names": "globals()[3] = globals()['a b'] = globals()['assert'] = print\n" + WRONG,
    "closed pipe": "import os\nos.closerange(0, 64)\n" + WRONG,
}


@pytest.mark.parametrize("name", FORGED)
def test_nothing_but_right_values_passes(sandbox, name):
    assert not passes(sandbox, FORGED[name], TESTS)


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(1000)", "while True: print('x' * 10**6)", "input()\n" + ADD]
)
def test_endless_program_meets_the_deadline(sandbox, program):
    assert not passes(sandbox, program, TESTS, deadline=1.0)


@pytest.mark.parametrize("name", ["exit at once", "no program", "exit in the call", "closed pipe"])
def test_dead_program_is_not_waited_for(sandbox, monkeypatch, name):
    events = []

    class Poll:
        def __init__(self, poll=select.poll):
            self.inner = poll()
            self.register = self.inner.register

        def poll(self, deadline):
            events.append(self.inner.poll(deadline))
            return events[-1]

    monkeypatch.setattr(select, "poll", Poll)
    assert not passes(sandbox, FORGED[name], TESTS)
    assert all(events), "the deadline ended it"


def test_honest_program_passes_after_and_beside_hostile_ones(sandbox):
    jobs = [(FORGED["fork bomb"], TESTS), (ADD, TESTS), (FORGED["kills everyone"], TESTS), (ADD, TESTS), (WRONG, TESTS)]
    assert run_all(sandbox, jobs) == [False, True, False, True, False]
    assert run_all(sandbox, []) == []


def test_equal_pairs_run_once():
    class Counting:
        started = 0

        def start(self, source, *arguments, pass_fds=(), **popen):
            self.started += 1
            return subprocess.Popen([sys.executable, "-c", ""], **popen)

    sandbox = Counting()
    assert run_all(sandbox, [(ADD, TESTS)] * 9 + [(WRONG, TESTS)]) == [False] * 10
    assert sandbox.started == 4  # two interpreters a pair


@pytest.mark.parametrize("tests", ["", "pass", "def test_add():\n    assert add(1, 1) == 2", "assert True", "1 +", "import numpy"])
def test_tests_that_ask_nothing_pass_nobody(sandbox, tests):
    assert not passes(sandbox, ADD, tests)


def test_error_of_the_program_is_not_taken_for_its_end(sandbox):
    tests = "try:\n    f()\n    assert False\nexcept {}:\n    pass\nassert g() == 1"
    program = "def f():\n    {}\ndef g():\n    return 1"
    assert passes(sandbox, program.format("raise ValueError('x')"), tests.format("ValueError"))
    assert passes(sandbox, program.format("return {}['x']"), tests.format("KeyError"))
    assert not passes(sandbox, program.format("raise ValueError('x')"), tests.format("KeyError"))
    assert not passes(sandbox, program.format("import os; os._exit(1)"), "try:\n    f()\nexcept BaseException:\n    pass")


def test_tests_are_not_in_reach_of_the_program(sandbox):
    spy = (
        "import gc, sys\ndef add(a, b):\n    seen = [x for x in gc.get_objects() if isinstance(x, dict)]\n"
        "    return [v for d in seen for v in d.values() if isinstance(v, str) and 'a mark of the tests' in v]\n"
    )
    assert passes(sandbox, spy, "# a mark of the tests\nassert add(1, 2) == []")


RICH = """
from __future__ import annotations
from collections import Counter, namedtuple
from dataclasses import dataclass
import enum

print("hello")
Pair = namedtuple("Pair", "a b")

class Color(enum.IntEnum):
    RED = 1

@dataclass
class Node:
    value: int
    left: Node | None = None

def depth(node):
    return 0 if node is None else 1 + depth(node.left)
def echo(*values, **named):
    return values, named
def count(n):
    for i in range(n):
        yield i, {i}
def special():
    return Pair(1, Color.RED), Counter("aab"), frozenset({1}), b"x", 1 + 2j, float("inf"), 10**6000, None, "\\ud800"
def len(x):
    return 99
if __name__ == "__main__":
    input()
"""
RICH_TESTS = """
import math
assert echo(1, 2.5, [None, (True,)], {(1, 2): {3}}, x="y") == ((1, 2.5, [None, (True,)], {(1, 2): {3}}), {"x": "y"})
assert math.isnan(echo(math.nan)[0][0]) and isinstance(echo(True)[0][0], bool)
assert special() == ((1, 1), {"a": 2, "b": 1}, frozenset({1}), b"x", 1 + 2j, math.inf, 10**6000, None, "\\ud800")
root = Node(1)
root.left = Node(2, left=Node(value=3))
assert depth(root) == 3 and root.left.left.value == 3 and root.left.left.left is None
assert list(count(3)) == [(0, {0}), (1, {1}), (2, {2})]
assert len([1, 2]) == 2
for wrong in (lambda: echo(len), lambda: echo(object())):
    try:
        wrong()
        assert False
    except TypeError:
        pass
"""


def test_values_objects_and_generators_cross(sandbox):
    assert passes(sandbox, RICH, RICH_TESTS)


def test_private_names_of_the_program_are_not_the_tests_own(sandbox):
    assert passes(sandbox, ADD + "def __builtins__(name):\n    return name", "assert len([add(1, 2)]) == 1")


HUMANEVAL = """
METADATA = {"author": "x"}

def check(candidate):
    assert candidate([1.0, 2.0, 3.9], 0.3) == False
    for n in range(100):
        assert candidate([0.0, n], n + 1) is True
"""


def test_humaneval_form(sandbox):
    program = (
        "from typing import List\n\ndef has_close(numbers: List[float], threshold: float) -> bool:\n"
        "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])\n"
    )
    tests = HUMANEVAL + "\ncheck(has_close)\n"
    assert run_all(sandbox, [(program, tests), (program.replace("<", ">"), tests)]) == [True, False]


def random_value(rng, depth=3, hashable=False):
    makers = [
        lambda: rng.choice(
            [None, True, False, 0, -1, 10**5000, -(2**63), 0.1, -0.0, math.inf, 1j, "", "a\n\u2028", "\ud800", b"\xff"]
        )
    ]
    if depth:
        below = [random_value(rng, depth - 1, hashable) for _ in range(rng.randrange(4))]
        flat = [random_value(rng, depth - 1, True) for _ in range(rng.randrange(4))]
        makers += [lambda: tuple(below), lambda: frozenset(flat)]
        makers += [] if hashable else [lambda: list(below), lambda: set(flat), lambda: dict.fromkeys(flat, below)]
    return rng.choice(makers)()


def test_values_survive_the_crossing():
    rng = random.Random(0)
    for _ in range(500):
        value = random_value(rng)
        there = decode(encode(value, None), None)
        assert there == value and type(there) is type(value)


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        ("x = 1", "x = 1"),
        ("", ""),
        ("Look:\n```python\nx = 1\n```\nNow:\n```\nx = 2\n```\nIt prints\n```text\n2\n```\n", "x = 2"),
        ("```text\n2\n```\nx = 1", "```text\n2\n```\nx = 1"),
        ("```py\nx = 1\n```\nand ```python\nx = 2", "x = 1"),
        ("```python\nx = 1\n", "```python\nx = 1\n"),
        ("- so\n  ```Python\n  if x:\n      y = '`'\n  ```", "if x:\n    y = '`'"),
        ("```python\n```", ""),
        ("```python\n" * 50_000, "```python\n" * 50_000),
    ],
)
def test_program_in_a_reply(reply, program):
    assert program_in(reply) == program
