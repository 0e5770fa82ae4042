"""Rewards in TRL's form, read strictly from YAML, and guarded while they work."""

import asyncio
import doctest
import importlib.util
import sys

import pytest
from groundup import rewards
from groundup.errors import InputError
from groundup.languages import identifier
from groundup.rewards import (
    REWARDS,
    answer_format,
    build_rewards,
    correct_answer,
    language_consistency,
    length,
    repetition,
)
from groundup.sandbox import proven_sandbox


def chat(text):
    return [{"role": "assistant", "content": text}]


def test_docstrings_tell_the_truth():
    result = doctest.testmod(rewards)
    assert (result.failed, result.attempted) == (0, 4)


def test_correct_answer():
    assert correct_answer([chat("Answer: 7"), "7", r"\boxed{\sqrt{8}}"], ["7", "7", r"2\sqrt{2}"]) == [1.0, 0.0, 1.0]
    assert correct_answer(["Answer: 7", "Answer: 7"], answer=[None, 7]) == [None, 1.0]
    logged = {}
    correct_answer(["Answer: 7"], ["7"], log_metric=logged.__setitem__)
    assert set(logged) == {"verifier/timeouts", "verifier/crashes"}


def test_answer_format():
    assert answer_format([chat("So. Answer: 7"), "Answer: 7 and\nmore", ""]) == [1.0, 0.0, 0.0]


def test_length():
    words = [0, 10, 11, 15, 20, 500]
    assert length(["w " * n for n in words], max_words=10) == pytest.approx([0.0, 0.0, -0.1, -0.5, -1.0, -1.0])


def test_repetition():
    # "a a a a": 3-grams aaa, aaa: one of two repeats; "a b" has none
    assert repetition(["a a a a", "A a a A", "a b", "", "a b c d"]) == [-0.5, -0.5, 0.0, 0.0, 0.0]
    assert repetition(["x " * 101], ngram=1) == pytest.approx([-100 / 101])


def test_language_consistency():
    pytest.importorskip("py3langid", reason="needs py3langid: pip install 'groundup[language]'")
    texts = [chat("We add the two numbers."), "Wir addieren die beiden Zahlen.", "x = 7", ""]
    assert language_consistency(texts, language="en") == [1.0, 0.0, None, None]
    with pytest.raises(InputError, match="`english` is not a language"):
        build_rewards([{"name": "language_consistency", "language": "english"}])


def test_missing_language_package_is_told_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    identifier.cache_clear()
    with pytest.raises(InputError, match=r"groundup\[language\]"):
        build_rewards([{"name": "language_consistency", "language": "en"}])


class Recorder:
    """In place of the sandbox and of what runs in it: every program passes, and is noted with its tests."""

    def __init__(self, monkeypatch):
        self.jobs = []
        monkeypatch.setattr(rewards, "proven_sandbox", lambda: None)
        monkeypatch.setattr(rewards, "run_all", self.run_all)

    def run_all(self, sandbox, jobs):
        self.jobs += jobs
        return [True] * len(jobs)


def test_passes_tests_reads_a_row_as_humaneval_has_it(monkeypatch):
    recorder = Recorder(monkeypatch)
    (function,), _ = build_rewards([{"name": "passes_tests", "allow_code_execution": True, "tests_column": "test"}])
    replies = [chat("So:\n```python\ndef f():\n    return 1\n```\nDone."), "def f(): return 1", "?", "?"]
    tests = ["def check(candidate):\n    assert candidate() == 1", "assert f() == 1", None, " "]
    assert function(completions=replies, test=tests, entry_point=["f", None, "f", None]) == [1.0, 1.0, None, None]
    assert recorder.jobs == [("def f():\n    return 1", f"{tests[0]}\ncheck(f)\n"), ("def f(): return 1", tests[1])]
    with pytest.raises(InputError, match="`passes_tests` needs a column `test`; did you mean `tests`"):
        function(completions=["?"], tests=["assert f() == 1"])


@pytest.mark.parametrize("parameters", [{}, {"allow_code_execution": False}])
def test_code_is_refused_without_the_opt_in(monkeypatch, parameters):
    recorder = Recorder(monkeypatch)
    with pytest.raises(InputError, match="allow_code_execution: true"):
        build_rewards([{"name": "passes_tests", **parameters}])
    with pytest.raises(InputError, match="allow_code_execution: true"):
        rewards.passes_tests(["def f(): return 1"], tests=["assert f() == 1"], **parameters)
    assert not recorder.jobs


def test_code_is_refused_without_a_sandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    proven_sandbox.cache_clear()
    with pytest.raises(InputError, match="install bubblewrap"):
        build_rewards([{"name": "passes_tests", "allow_code_execution": True}])


def test_real_code_is_graded(sandbox):
    (function,), _ = build_rewards([{"name": "passes_tests", "allow_code_execution": True}])
    replies = ["```python\ndef twice(x):\n    return 2 * x\n```", "def twice(x):\n    return x", "I do not know."]
    assert function(completions=replies, tests=["assert twice(3) == 6"] * 3) == [1.0, 0.0, 0.0]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own."""
    (tmp_path / "own_rewards.py").write_text(
        "def brevity(completions, tone, *, scale: float = 1.0, **kwargs):\n"
        "    return [scale * len(t) for t in tone]\n"
        "async def remote(completions, **kwargs):\n"
        "    return [1.0] * len(completions)\n"
        "def closed(completions):\n"
        "    return []\n"
    )
    (tmp_path / "own_broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_rewards"
    sys.modules.pop("own_rewards", None)


def test_build_from_yaml(own):
    functions, weights = build_rewards(
        [
            {"name": "correct_answer", "weight": 1.0},
            {"name": "answer_format"},
            {"name": "length", "weight": 0.1, "max_words": 2},
            {"name": "length", "weight": 0, "max_words": 4},
            {"name": "own_rewards.brevity", "weight": -1, "scale": 0.5},
            {"model": "out/nano/reward", "weight": 1},
        ]
    )
    assert weights == [1.0, 1.0, 0.1, 0.0, -1.0, 1.0]
    assert functions[-1] == "out/nano/reward"
    names = [function.__name__ for function in functions[:-1]]
    assert names == ["correct_answer", "answer_format", "length", "length_2", "brevity"]
    batch = {
        "prompts": ["?"],
        "completions": [chat("a b c")],
        "completion_ids": [[1]],
        "answer": ["7"],
        "tone": ["warm"],
    }
    batch |= {"trainer_state": None, "log_extra": print, "log_metric": lambda *_: None}
    assert [function(**batch) for function in functions[:-1]] == [[0.0], [0.0], [-0.5], [0.0], [2.0]]


def test_trl_takes_them(own):
    from trl.trainer.utils import get_callable_name, is_async_callable

    (function, remote), _ = build_rewards([{"name": "length", "max_words": 5}, {"name": "own_rewards.remote"}])
    assert get_callable_name(function) == "length" and not is_async_callable(function)
    assert get_callable_name(remote) == "remote" and is_async_callable(remote)
    assert asyncio.run(remote(completions=["a", "b"])) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "corect_answer"}, "did you mean `correct_answer`"),
        ({"name": "zzz"}, "take one of `correct_answer`, `answer_format`, `length`, `repetition`"),
        ({"name": "length", "max_word": 40}, "did you mean `max_words`"),
        ({"name": "length", "max_words": 40, "zzz": 1}, "it takes `max_words`"),
        ({"name": "correct_answer", "answer": "7"}, "it takes none"),
        ({"name": "length"}, "needs `max_words`"),
        ({"name": "length", "max_words": "forty"}, "not of type int"),
        ({"name": "length", "max_words": True}, "not of type int"),
        ({"name": "length", "max_words": 0}, "less than 1"),
        ({"name": "answer_format", "weight": "high"}, "the weight `high` is not a number"),
        ({"name": "answer_format", "weight": None}, "is not a number"),
        ({"name": "answer_format", "weight": True}, "is not a number"),
        ({"name": "answer_format", "weight": float("nan")}, "is not a number"),
        ({"name": "no_such_package.f"}, "cannot be imported"),
        ({"name": "own_broken.f"}, "no_such_library"),
        ({"name": "own_rewards.brevty"}, "did you mean `brevity`"),
        ({"name": "own_rewards.brevity", "tone": "warm"}, "it takes `scale`"),
        ({"name": "own_rewards.closed"}, r"takes no `\*\*kwargs`"),
        ({"model": "a/b", "max_words": 1}, "takes no `max_words`"),
        ({"model": 3}, "not a name"),
        ({"name": "length", "model": "a"}, "either `name` or `model`"),
        ({"weight": 1.0}, "either `name` or `model`"),
        ("correct_answer", "either `name` or `model`"),
    ],
)
def test_mistakes_are_explained(own, spec, message):
    with pytest.raises(InputError, match=message):
        build_rewards([{"name": "correct_answer"}, spec])


def test_no_rewards_and_no_weight():
    for specs in ([], None, {"name": "length"}):
        with pytest.raises(InputError, match="list of rewards"):
            build_rewards(specs)
    with pytest.raises(InputError, match="nothing to learn"):
        build_rewards([{"name": "answer_format", "weight": 0.0}])


def test_missing_column_is_named():
    (function,), _ = build_rewards([{"name": "correct_answer"}])
    with pytest.raises(InputError, match="needs a column `answer`; did you mean `answers`"):
        function(prompts=["?"], completions=["7"], answers=["7"])


def test_every_reward_is_exact_on_an_empty_batch():
    for name, function in REWARDS.items():
        if name == "passes_tests" or (name == "language_consistency" and importlib.util.find_spec("py3langid") is None):
            continue  # empty batches of theirs are what `build_rewards` tries them with
        parameters = {"length": {"max_words": 5}, "language_consistency": {"language": "en"}}.get(name, {})
        columns = {"answer": []} if name == "correct_answer" else {}
        assert function(completions=[], **columns, **parameters) == []
