"""What reward functions do wrong: named, left out and counted where a completion is at fault, stopped where too many are."""

import asyncio
import re
import signal
import threading

import pytest
from groundup.errors import InputError
from groundup.guarding import guard, text_of
from groundup.rewards import REWARDS, build_rewards


def chat(text):
    return [{"role": "assistant", "content": text}]


def test_text_of_strings_and_chats():
    assert text_of("a") == text_of(chat("a")) == "a"
    turns = [*chat("a"), {"role": "tool", "content": "42"}, *chat(None), *chat([{"type": "text", "text": "b"}])]
    assert text_of(turns) == "a\n\nb"
    assert text_of([]) == ""


def returning(*values):
    return lambda completions, **kwargs: list(values)


# ---- What is no number


def test_faulty_rewards_become_none_and_are_counted(capsys):
    logged = {}
    function = guard(returning(1, None, 0.5, True, None, float("nan")), "mine")
    for _ in range(2):
        assert function(completions=["x"] * 6, log_metric=logged.__setitem__) == [1.0, None, 0.5, 1.0, None, None]
    assert function.faulty == 2 and function.at_fault == [5] and logged == {"rewards/mine/faulty": 1}
    said = capsys.readouterr().out
    what = "the reward `mine` failed for 1 of 6 completions: it returned nan for 'x'"
    assert said == f"{what}; such completions are left out, and counted in the log\n"  # once


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "1.0", [1.0, 2.0], 10**400, object()])
def test_a_run_whose_rewards_are_faulty_is_stopped(bad):
    function = guard(returning(1.0, bad, bad, 1.0), "mine")
    with pytest.raises(InputError, match="`mine` failed for 2 of 4 completions: it returned .* for 'second'") as stopped:
        function(completions=["first", "second", "third", "fourth"])
    assert "a larger `max_faulty_share` (it is 0.2)" in stopped.value.fix
    lenient = guard(returning(1.0, bad, bad, 1.0), "mine", max_faulty_share=0.5)
    assert lenient(completions=["x"] * 4) == [1.0, None, None, 1.0]


def test_one_of_a_few_stops_no_run_unless_none_may_be_at_fault():
    nan = float("nan")
    assert guard(returning(1.0, nan), "mine")(completions=["a", "b"]) == [1.0, None]  # half of them, and yet but one
    for share, values in ((0.0, [1.0, nan]), (0.2, [nan]), (1.0, [nan, nan])):
        with pytest.raises(InputError, match="`mine` failed for"):
            guard(returning(*values), "mine", max_faulty_share=share)(completions=["x"] * len(values))


@pytest.mark.parametrize("result", [None, 1.0, [1.0], [1.0] * 3, "ab", object()])
def test_one_reward_for_each_completion(result):
    with pytest.raises(InputError, match="`mine` returned (no list of rewards|[13] rewards) for 2 completions"):
        guard(lambda completions, **kwargs: result, "mine")(completions=["a", "b"])


# ---- What raises


def inverse(completions, divisor, log_extra=None, log_metric=None, **kwargs):
    if log_extra is not None:
        log_extra("length", [len(c) for c in completions])
    return [1 / d for d in divisor]


def test_completions_that_a_reward_raises_for_are_found_and_left_out(capsys):
    function = guard(inverse, "inverse")
    extra, logged = [], {}
    batch = {"completions": list("abcde"), "divisor": [1, 2, 0, 4, 5], "trainer_state": None}
    rewards = function(**batch, log_extra=lambda *column: extra.append(column), log_metric=logged.__setitem__)
    assert rewards == [1.0, 0.5, None, 0.25, 0.2]
    assert (function.at_fault, function.faulty, logged) == ([2], 1, {"rewards/inverse/faulty": 1})
    assert extra == [("length", [1] * 5)]  # TRL's table of completions takes whole columns only
    said = capsys.readouterr().out
    assert "`inverse` failed for 1 of 5 completions: it raised ZeroDivisionError: division by zero (test_guarding.py, line" in said
    assert "for 'c'" in said
    assert function(completions=["a"], divisor=[2]) == [0.5] and function.at_fault == []


def test_too_many_that_a_reward_raises_for_stop_the_run():
    function = guard(inverse, "inverse", max_faulty_share=0.5)
    assert function(completions=list("abcd"), divisor=[0, 1, 0, 2]) == [None, 1.0, None, 0.5]
    message = r"`inverse` failed for 3 of 4 completions: it raised ZeroDivisionError: .*\(test_guarding.py, line \d+\) for 'a'"
    with pytest.raises(InputError, match=message):
        function(completions=list("abcd"), divisor=[0, 2, 0, 0])


def test_a_reward_that_always_raises_stops_the_run_whatever_the_limit():
    def broken(completions, **kwargs):
        raise KeyError("tone")

    with pytest.raises(InputError, match="`broken` failed for 3 of 3 completions: it raised KeyError: 'tone'"):
        guard(broken, "broken", max_faulty_share=1.0)(completions=["a", "b", "c"])


def test_a_reward_that_raises_for_all_and_for_none_stops_the_run():
    def alone(completions, **kwargs):
        if len(completions) > 1:
            raise ValueError("one at a time")
        return [1.0]

    with pytest.raises(InputError, match="`alone` raised ValueError: one at a time .* 2 completions together, and for none"):
        guard(alone, "alone")(completions=["a", "b"])


def test_a_failure_that_does_not_come_again_costs_nothing():
    calls = []

    def flaky(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 1:
            raise ConnectionError
        return [float(len(c)) for c in completions]

    function = guard(flaky, "flaky")
    assert function(completions=["a", "bb"]) == [1.0, 2.0] and function.faulty == 0 and calls == [2, 1, 1, 2]


def test_a_mistake_that_has_been_explained_passes_through():
    def explained(completions, **kwargs):
        raise InputError("no key", fix="set it")

    with pytest.raises(InputError, match="^no key"):
        guard(explained, "explained")(completions=["a", "b"])


def test_other_processes_than_the_first_say_why_they_stop(monkeypatch, capsys):
    """`configs.run` prints what the first process raises, and a completion may be at fault elsewhere."""
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(InputError) as stopped:
            guard(returning(1.0), "mine")(completions=["a", "b"])
        assert capsys.readouterr().err == (f"error: {stopped.value}\n" if rank == "1" else "")


# ---- What hangs

BACKTRACKS = re.compile(r"(a+)+b")


def waiting(completions, **kwargs):
    """For ever where a completion says so: in a call, in a regular expression, or swallowing what should end it."""
    for completion in completions:
        if completion == "sleep":
            threading.Event().wait()
        elif completion == "regex":
            BACKTRACKS.match("a" * 60)
        elif completion == "swallow":
            try:
                threading.Event().wait()
            except:  # noqa: E722
                threading.Event().wait()
    return [1.0] * len(completions)


@pytest.fixture
def alarm():
    """Somebody else's alarm, which must be found as it was."""

    def handler(*_):
        raise AssertionError("too early")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 3000)
    yield handler
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    assert signal.signal(signal.SIGALRM, before) is handler
    assert 2000 < left < 3000 and interval == 0


@pytest.mark.parametrize("how", ["sleep", "regex", "swallow"])
def test_a_completion_for_which_a_reward_hangs_is_left_out(how, alarm, capsys):
    function = guard(waiting, "waiting", timeout=0.2)
    assert function(completions=["a", how, "b", "c", "d"]) == [1.0, None, 1.0, 1.0, 1.0]
    assert function.at_fault == [1]
    assert "it took longer than the 0.2 s of `reward_timeout`" in capsys.readouterr().out


def test_a_reward_that_always_hangs_is_not_waited_for_with_each_completion(alarm):
    calls = []

    def hanging(completions, **kwargs):
        calls.append(len(completions))
        threading.Event().wait()

    with pytest.raises(InputError, match=r"`hanging` failed for at least 5 of 20 completions: it took longer than .*test_guarding"):
        guard(hanging, "hanging", timeout=0.05)(completions=["x"] * 20)
    assert calls == [20, 1, 1, 1, 1, 1]


def test_alarms_are_put_back_after_errors_and_results(alarm):
    guard(returning(1.0), "mine", timeout=5)(completions=["a"])
    with pytest.raises(InputError):
        guard(lambda completions, **kwargs: 1 / 0, "mine", timeout=5)(completions=["a"])


def test_no_time_is_set_without_a_timeout(alarm):
    seen = []

    def looks(completions, **kwargs):
        seen.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return [1.0]

    guard(looks, "looks")(completions=["a"])
    assert seen[0] > 2000


def test_hanging_outside_the_main_thread(alarm):
    function, found = guard(waiting, "waiting", timeout=0.5), []
    thread = threading.Thread(target=lambda: found.append(function(completions=["a", "sleep", "b"])), daemon=True)
    thread.start()
    thread.join(60)
    assert found == [[1.0, None, 1.0]]
    errors = guard(inverse, "inverse", timeout=5)
    thread = threading.Thread(target=lambda: found.append(errors(completions=list("abc"), divisor=[1, 0, 2])), daemon=True)
    thread.start()
    thread.join(60)
    assert found[1] == [1.0, None, 0.5]


def test_coroutines_that_hang_or_raise():
    async def remote(completions, **kwargs):
        for completion in completions:
            if completion == "sleep":
                await asyncio.sleep(3600)
            if completion == "late":
                raise TimeoutError("the judge's own")
        return [1.0] * len(completions)

    function = guard(remote, "remote", timeout=0.2)
    assert asyncio.run(function(completions=["a", "sleep", "b"])) == [1.0, None, 1.0]
    assert function.at_fault == [1]
    with pytest.raises(InputError, match="it took longer than the 0.2 s of `reward_timeout`"):
        asyncio.run(function(completions=["sleep", "sleep"]))
    with pytest.raises(InputError, match="it raised TimeoutError: the judge's own"):
        asyncio.run(function(completions=["late", "late"]))


def test_timeout_is_for_functions_of_ones_own(tmp_path, monkeypatch):
    """The verifier's child has deadlines of its own, one for each answer, and may take longer to start."""
    (tmp_path / "own_slow.py").write_text("import threading\ndef slow(completions, **kwargs):\n    threading.Event().wait()\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def timed(completions, **kwargs):
        seen.append(signal.getitimer(signal.ITIMER_REAL))
        return [1.0]

    monkeypatch.setitem(REWARDS, "timed", timed)
    (timed, slow), _ = build_rewards([{"name": "timed"}, {"name": "own_slow.slow"}], timeout=0.05)
    assert timed(completions=["a"]) == [1.0] and set(seen) == {(0.0, 0.0)}
    with pytest.raises(InputError, match="0.05 s of `reward_timeout`"):
        slow(completions=["a"])
