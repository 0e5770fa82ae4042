"""Rewards at work: what a reward function of anybody's does wrong is named, left out and counted, or stops the run."""

import asyncio
import difflib
import inspect
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from groundup.errors import InputError

Completion = str | list[dict[str, Any]]


def text_of(completion: Completion) -> str:
    """What the assistant wrote, over all its messages."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content) for content in contents
    )


# TRL passes these by keyword to each reward: neither columns nor for YAML to set.
FROM_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}


class Hung(BaseException):
    """A call took too long. No Exception: a reward's own `except Exception` is not to catch it."""


def guard(
    function: Callable,
    name: str,
    parameters: dict[str, Any] | None = None,
    max_faulty_share: float = 0.2,
    timeout: float = 0.0,
) -> Callable:
    """`function` with its parameters set and its rewards checked, under the name that the logs will show.

    A completion is at fault when its reward is no finite number, or when the function raises or takes more than `timeout` seconds
    (0: any time) for it: a call that fails is made again with one completion at a time to find which, and then without those. Its
    reward becomes None, its number in the batch stands in the attribute `at_fault`, and it is counted in `faulty` and the log.
    A wait in C code that looks for no signals, or in a coroutine that does not `await`, cannot be ended.

    Without the check one NaN is a missing reward to TRL and infinity reaches the weights. The attribute `columns` names what the
    function needs of the data.

    Raises (when called):
        InputError: more than `max_faulty_share` of a batch at fault (but one of several may be, unless it is 0), all of it, a wrong
            number of rewards, or a failure with all completions together that there is with none alone.
    """
    parameters, said = parameters or {}, []
    signature = inspect.signature(function).parameters.items()
    columns = [key for key, p in signature if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    fix = f"mend the function, or write a larger `max_faulty_share` (it is {max_faulty_share:g})"
    slow = f"took longer than the {timeout:g} s of `reward_timeout`"

    async def attempt(batch: dict[str, Any]) -> tuple[Any, str]:
        """What the function returns, and what went wrong, if anything."""
        limit = None
        try:
            if inspect.iscoroutinefunction(function):
                async with asyncio.timeout(timeout or None) as limit:
                    return await function(**batch, **parameters), ""
            return _within(timeout, lambda: function(**batch, **parameters)), ""
        except InputError:
            raise
        except Hung as error:
            return None, slow + _place(error)
        except Exception as error:
            late = limit is not None and limit.expired()
            return None, (slow if late else f"raised {type(error).__name__}: {str(error)[:200]}") + _place(error)

    def check(faults: dict[int, str], completions: list[Completion], tried: int) -> None:
        found, total = len(faults), len(completions)
        if not found:
            return
        first = next(iter(faults))
        share = f"{'at least ' * (tried < total)}{found} of {total} completions"
        what = f"the reward `{name}` failed for {share}: it {faults[first]} for {text_of(completions[first])[:200]!r}"
        if found == total or found > (max(1, max_faulty_share * total) if max_faulty_share else 0):
            raise _everywhere(InputError(what, fix=fix))
        if tried == total and not said:
            said.append(what)
            print(f"{what}; such completions are left out, and counted in the log", flush=True)

    async def judge(batch: dict[str, Any]) -> list[float | None]:
        check_columns(columns, name, batch)
        completions = batch["completions"]
        sound, faults = list(range(len(completions))), {}
        rewards, wrong = await attempt(batch)
        if wrong:
            for i in sound:
                _, alone = await attempt(_part(batch, [i]))
                faults |= {i: alone} if alone else {}
                check(faults, completions, i + 1)
            sound = [i for i in sound if i not in faults]
            rewards, again = await attempt(_part(batch, sound))
            if again:
                what = f"the reward `{name}` {again} for {len(sound)} completions together, and for none of these alone"
                longer = f", or write a larger `reward_timeout` (it is {timeout:g})" if timeout else ""
                raise _everywhere(InputError(what, fix=f"mend the function{longer}"))
        try:
            rewards = None if isinstance(rewards, str | bytes) else list(rewards)
        except TypeError:  # None, or a number
            rewards = None
        if rewards is None or len(rewards) != len(sound):
            found = "no list of rewards" if rewards is None else f"{len(rewards)} rewards"
            what = f"the reward `{name}` returned {found} for {len(sound)} completions"
            raise _everywhere(InputError(what, fix="return a list with one number, or None, for each completion"))
        checked: list[float | None] = [None] * len(completions)
        for i, reward in zip(sound, rewards, strict=True):
            checked[i] = None if reward is None else _finite(reward)
            if checked[i] is None and reward is not None:
                faults[i] = f"returned {reward!r:.80}"
        check(faults, completions, len(completions))
        guarded.at_fault = sorted(faults)
        guarded.faulty += len(faults)
        if faults and "log_metric" in batch:
            batch["log_metric"](f"rewards/{name}/faulty", len(faults))
        return checked

    if inspect.iscoroutinefunction(function):

        async def guarded(**batch) -> list[float | None]:
            return await judge(batch)
    else:

        def guarded(**batch) -> list[float | None]:
            return _without_waiting(judge(batch))

    guarded.__name__ = guarded.__qualname__ = name
    guarded.__doc__ = function.__doc__
    guarded.faulty, guarded.at_fault = 0, []
    guarded.columns = columns
    return guarded


def check_columns(columns: list[str], name: str, batch: dict[str, Any]) -> None:
    for column in columns:
        if column not in batch:
            raise InputError(
                f"the reward `{name}` needs a column `{column}`{nearest(column, batch)}",
                f"columns beside the prompt: {listed(key for key in batch if key not in FROM_TRL) or 'none'}",
                "give the dataset this column (`answer_column: ...` in the YAML file names the one with answers)",
            )


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns; Hung after `seconds`, unless they are 0. An alarm that was set is put back, less the time gone."""
    if not seconds:
        return call()
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return _within_a_thread(seconds, call)
    running = True

    def stop(*_):
        if running:
            raise Hung

    handler, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again and again: a bare `except` swallows the first
    try:
        try:
            return call()
        finally:
            running = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


def _within_a_thread(seconds: float, call: Callable[[], Any]) -> Any:
    """As `_within`, where there are no alarms; what hangs is left behind in its thread, which ends with the process."""
    found: list[tuple[Any, BaseException | None]] = []

    def work():
        try:
            found.append((call(), None))
        except BaseException as error:  # for the caller
            found.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise Hung
    result, error = found[0]
    if error is not None:
        raise error
    return result


def _without_waiting(coroutine: Coroutine) -> Any:
    """What a coroutine returns that never waits for another."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("a coroutine waits where none may")


def _part(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some of a batch's rows, to be scored without a word in the log: its table of completions wants all rows at once."""
    total = len(batch["completions"])
    part = {k: [v[i] for i in rows] if isinstance(v, list) and len(v) == total else v for k, v in batch.items()}
    return part | {key: lambda *_: None for key in ("log_extra", "log_metric") if key in batch}


def _place(error: BaseException) -> str:
    """Where in the function's own file an error came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _everywhere(error: InputError) -> InputError:
    """The error, said: of what a recipe raises, the first process prints its own only."""
    if os.environ.get("RANK", "0") != "0":
        print(f"error: {error}", file=sys.stderr, flush=True)
    return error


def _finite(reward: Any) -> float | None:
    if isinstance(reward, str | bytes):  # "1.0" is a mistake, though float() takes it
        return None
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def listed(names) -> str:
    return ", ".join(f"`{name}`" for name in names)


def nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
