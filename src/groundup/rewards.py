"""Rewards for GRPO and PPO, as plain functions in TRL's form: `f(completions, **columns) -> list[float | None]`.

`None` means that the reward does not apply to this row. A completion is a string or a list of chat messages. What a
function takes by keyword only (after `*`) is set in YAML; the rest are columns of the dataset.
"""

import importlib
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

from groundup import answers
from groundup.errors import InputError
from groundup.guarding import FROM_TRL, Completion, check_columns, guard, listed, nearest, text_of
from groundup.languages import identifier, share_in
from groundup.sandbox import proven_sandbox
from groundup.unit_tests import program_in, run_all
from groundup.verifier import shared

# --- The rewards -----------------------------------------------------------------------------------------------------


def correct_answer(
    completions: list[Completion], answer: list[str | None], log_metric: Callable | None = None, **kwargs
) -> list[float | None]:
    """1.0 where the completion's final answer equals `answer`, else 0.0; None where there is no `answer`.

    >>> correct_answer(["3 + 4 = 7. Answer: 7", "Answer: 8", "?"], answer=["7", "7", None])
    [1.0, 0.0, None]
    """
    verifier = shared()
    given = [i for i, gold in enumerate(answer) if gold is not None]
    grades = verifier.grade_batch([text_of(completions[i]) for i in given], [answer[i] for i in given])
    if log_metric is not None:
        log_metric("verifier/timeouts", verifier.timeouts)
        log_metric("verifier/crashes", verifier.crashes)
    right = dict(zip(given, grades, strict=True))
    return [float(right[i]) if i in right else None for i in range(len(answer))]


def answer_format(completions: list[Completion], **kwargs) -> list[float]:
    """1.0 where the completion states exactly one final answer and ends with it, right or wrong.

    >>> answer_format(["3 + 4 = 7. Answer: 7", "7", "Answer: 7. Answer: 8."])
    [1.0, 0.0, 0.0]
    """
    return [float(answers.ends_in_one_answer(text_of(completion))) for completion in completions]


def length(completions: list[Completion], *, max_words: int, **kwargs) -> list[float]:
    """0.0 up to `max_words` words, from there down in a line to -1.0 at twice as many.

    >>> length(["one two", "one two three", "one two three four five"], max_words=2)
    [0.0, -0.5, -1.0]
    """
    excess = [len(text_of(completion).split()) / max_words - 1 for completion in completions]
    return [-min(1.0, x) if x > 0 else 0.0 for x in excess]


def repetition(completions: list[Completion], *, ngram: int = 3, **kwargs) -> list[float]:
    """Minus the share of n-grams of words that occurred before in the completion.

    >>> repetition(["a b a b a", "a b c"], ngram=2)
    [-0.5, 0.0]
    """
    rewards = []
    for completion in completions:
        words = text_of(completion).lower().split()
        ngrams = list(zip(*(words[i:] for i in range(ngram)), strict=False))
        rewards.append(len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0)
    return rewards


def language_consistency(completions: list[Completion], *, language: str, **kwargs) -> list[float | None]:
    """The share of the completion's words that are in `language` (ISO 639-1), as in DeepSeek-R1 (arXiv 2501.12948).

    None where nothing can be told: an empty completion, a very short one, or only code and figures.
    """
    identifier(language)
    return [share_in(text_of(completion), language) for completion in completions]


def passes_tests(
    completions: list[Completion],
    entry_point: list[str | None] | None = None,
    *,
    tests_column: str = "tests",
    allow_code_execution: bool = False,
    **kwargs,
) -> list[float | None]:
    """1.0 where the completion's program passes the row's unit tests, else 0.0; None where the row has none.

    The program is the last fenced block of Python (```python, or of no language), or the whole text where there is none.
    The tests, in the column `tests_column`, are a text of assertions that call it. Where the row has an `entry_point`,
    they define `check(candidate)`, as in HumanEval (`tests_column: test`), and it is called with what has that name.
    Both get the standard library alone, and the tests import what they use; what they can ask of the program is in
    `groundup.unit_tests`.
    An InputError without `allow_code_execution: true`, or without a sandbox that holds.
    """
    if not allow_code_execution:
        raise InputError(
            "the reward `passes_tests` runs code that the model wrote",
            "`rewards` in the YAML file",
            "write `{name: passes_tests, allow_code_execution: true}` if that is what you want; it runs in a sandbox",
        )
    sandbox = proven_sandbox()
    if not completions:
        return []
    check_columns([tests_column], "passes_tests", kwargs)
    entries = entry_point or [None] * len(completions)
    jobs = {}
    for i, (completion, tests, entry) in enumerate(zip(completions, kwargs[tests_column], entries, strict=True)):
        if tests and tests.strip():
            jobs[i] = (program_in(text_of(completion)), f"{tests}\ncheck({entry})\n" if entry else tests)
    passed = dict(zip(jobs, run_all(sandbox, list(jobs.values())), strict=True))
    return [float(passed[i]) if i in passed else None for i in range(len(completions))]


# --- From YAML to functions ------------------------------------------------------------------------------------------


def build_rewards(
    specs: list[dict[str, Any]], max_faulty_share: float = 0.2, timeout: float = 0.0
) -> tuple[list[Callable | str], list[float]]:
    """The reward functions and weights that a YAML list names, for `reward_funcs` and `reward_weights` of TRL.

    rewards:
      - {name: correct_answer, weight: 1.0}
      - {name: length, weight: 0.1, max_words: 40}
      - {name: mypackage.module.function, weight: 0.5}   # your own
      - {model: out/nano/reward, weight: 0}              # a reward model; weight 0 is logged only

    A model stays a string, which TRL loads. Functions are guarded (see `guard`) and their `__name__`s differ. Those of this module
    need no `timeout`: they are quick, or the verifier's child bounds them.
    """
    where = "`rewards` in the YAML file"
    if not isinstance(specs, list) or not specs:
        raise InputError("a run needs a list of rewards", where, "write `rewards: [{name: correct_answer, weight: 1.0}]`")
    functions, weights, names = [], [], set()
    for i, spec in enumerate(specs):
        place = f"{where}, item {i + 1}: {spec}"
        if not isinstance(spec, dict) or ("name" in spec) == ("model" in spec):
            raise InputError(
                "a reward is given by either `name` or `model`",
                place,
                "write `{name: ..., weight: 1.0}` or `{model: ...}`",
            )
        weights.append(_weight(spec, place))
        parameters = {key: value for key, value in spec.items() if key not in ("name", "model", "weight")}
        source = spec.get("name", spec.get("model"))
        if not isinstance(source, str) or not source:
            raise InputError(f"`{source}` is not a name", place, "write a text")
        name = base = source.rpartition(".")[2] if "name" in spec else source.rstrip("/").rpartition("/")[2]
        copies = itertools.count(2)
        while name in names:
            name = f"{base}_{next(copies)}"
        names.add(name)
        if "model" in spec:
            if parameters:
                raise InputError(f"a reward model takes no {listed(parameters)}", place, "leave it out")
            functions.append(source)
        else:
            function = _find(source, place)
            _check_parameters(function, source, parameters, place)
            functions.append(guard(function, name, parameters, max_faulty_share, 0.0 if source in REWARDS else timeout))
            if source in REWARDS:  # what it cannot do it says now, before a model is loaded
                function(**{column: [] for column in functions[-1].columns}, **parameters)
    if not any(weights):
        raise InputError("each reward has weight 0: there is nothing to learn", where, "give one of them a weight")
    return functions, weights


def _weight(spec: dict, place: str) -> float:
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise InputError(f"the weight `{weight}` is not a number", place, "write `weight: 1.0`")
    return float(weight)


def _find(name: str, place: str) -> Callable:
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise InputError(
            f"no reward is called `{name}`{nearest(name, REWARDS)}",
            place,
            f"take one of {listed(REWARDS)}, or the dotted path of your own function",
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"the reward `{name}` cannot be imported: {error}",
            place,
            "install its package or add its folder to PYTHONPATH",
        ) from error
    if not callable(vars(module).get(attribute)):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(
            f"`{module_name}` has no function `{attribute}`{nearest(attribute, functions)}",
            place,
            f"take one of {listed(functions)}" if functions else f"look into {module.__file__}",
        )
    return vars(module)[attribute]


def _check_parameters(function: Callable, name: str, given: dict[str, Any], place: str) -> None:
    signature = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        raise InputError(
            f"the reward `{name}` takes no `**kwargs`",
            place,
            "add them to its signature: TRL passes every column of the data",
        )
    takes = {key: p for key, p in signature.items() if p.kind is p.KEYWORD_ONLY and key not in FROM_TRL}
    for key, value in given.items():
        if key not in takes:
            fix = f"it takes {listed(takes)}" if takes else "it takes none"
            raise InputError(f"the reward `{name}` has no parameter `{key}`{nearest(key, takes)}", place, fix)
        kind = takes[key].annotation
        accepted = {int: int, float: (int, float), str: str, bool: bool}.get(kind, object)
        if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
            raise InputError(f"`{key}: {value}` is not of type {kind.__name__}", place, f"correct `{key}`")
        if kind is int and value < 1 and name in REWARDS:
            raise InputError(f"`{key}: {value}` is less than 1", place, f"correct `{key}`")
    for key, parameter in takes.items():
        if parameter.default is parameter.empty and key not in given:
            raise InputError(f"the reward `{name}` needs `{key}`", place, f"add `{key}: ...`")


REWARDS: dict[str, Callable] = {
    "correct_answer": correct_answer,
    "answer_format": answer_format,
    "length": length,
    "repetition": repetition,
    "language_consistency": language_consistency,
    "passes_tests": passes_tests,
}
