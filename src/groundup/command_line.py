"""`--config FILE` and `--key value`, read strictly; and how a recipe ends: what is said, and with which status."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from groundup.configs import check_numbers
from groundup.errors import CRASHED, INTERRUPTED, SAVED, InputError, Preempted, RunError
from groundup.running import Run
from groundup.stopping import STOP


def dataclass_fields(types: Iterable[type]) -> dict[str, Any]:
    """Field name -> its type, for all of `types`."""
    return {f.name: hints[f.name] for kind in types for hints in [get_type_hints(kind)] for f in fields(kind) if f.init}


def allowed(kind: Any) -> set[type] | None:
    """Plain types that a field annotated `kind` takes from YAML; None when it is not for us to judge."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        parts = [allowed(part) for part in get_args(kind)]
        return None if None in parts else set().union(*parts)
    kind = origin or kind
    return {float: {float, int}}.get(kind, {kind}) if kind in (bool, int, float, str, list, dict, type(None)) else None


def takes_mapping(kind: Any) -> bool:
    """Whether a field holds a mapping or a list of them; the command line gives those as JSON."""
    return (get_origin(kind) or kind) is dict or any(takes_mapping(part) for part in get_args(kind))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_type(key: str, value: Any, kind: Any, where: str) -> None:
    """Refuse a value that a field annotated `kind` does not take.

    Raises:
        InputError: names the key and the type it wants.
    """
    kinds = allowed(kind)
    if kinds is None or type(value) in kinds:
        return
    if isinstance(value, str) and float in kinds and is_number(value):  # YAML reads 3e-4 as text
        return
    wanted = " or ".join(sorted("nothing" if k is type(None) else k.__name__ for k in kinds))
    raise InputError(f"`{key}: {value}` is {type(value).__name__}, not {wanted}", where, f"write a value of type {wanted}")


class StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the last one would win in silence."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # `{{ name }}`: what no dictionary can hold is refused below
                continue
            if key.value in seen:
                mark = key.start_mark
                raise InputError(f"`{key.value}` is given twice", f"{mark.name}:{mark.line + 1}", "keep one of the two lines")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str, known: dict[str, Any]) -> dict[str, Any]:
    """Read a configuration and check its keys and plain types against `known`.

    Raises:
        InputError: no such file, no YAML, an unknown or repeated key, a value of the wrong type.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        near = get_close_matches(Path(path).name, [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else [], n=1)
        raise InputError("no such configuration file", path, f"did you mean {folder / near[0]}?" if near else "check the path")
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.load(file, StrictLoader) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{path}:{mark.line + 1}" if mark else path
            fix = "check the brackets, quotes and indents up to there"
            raise InputError(f"not valid YAML: {getattr(error, 'problem', error)}", place, fix) from None
    if not isinstance(values, dict):
        raise InputError("a configuration is `key: value` lines", path, f"found {type(values).__name__}")
    for key, value in values.items():
        if key == "env":
            if not isinstance(value, dict):
                raise InputError("`env` is no mapping", path, "write `env: {NAME: value}`")
            continue
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise InputError(f"unknown key `{key}`", path, f"did you mean `{near[0]}`?" if near else "remove it")
        check_type(key, value, known[key], path)
    return values


def parse(types: Sequence[type], arguments: Sequence[str] | None = None) -> tuple:
    """`--config FILE` and `--key value` into dataclasses, strictly; the command line beats the file.

    Without an accelerator `use_cpu` is set, where a class has it: TRL's configurations otherwise stop on a machine without a
    GPU, and two ranks would run as two separate jobs (huggingface/accelerate#2741).

    Raises:
        InputError: whatever a user can mend.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--") and "=" in a else [a])]
    known = dataclass_fields(types)
    values: dict[str, Any] = {}
    config = ""
    if "--config" in arguments:
        where = arguments.index("--config") + 1
        if where == len(arguments):
            raise InputError("`--config` needs a file", fix="--config recipes/nano/pretrain.yaml")
        config = arguments[where]
        values = read_yaml(config, known)
        del arguments[where - 1 : where + 1]
    for place, argument in enumerate(arguments):
        name = argument[2:].replace("-", "_")
        if argument.startswith("--") and name in known:
            arguments[place] = f"--{name}"
        elif argument.startswith("--") and name not in ("config", "help"):
            near = get_close_matches(name, known, n=1)
            raise InputError(
                f"unknown argument `{argument}`", "the command line", f"did you mean `--{near[0]}`?" if near else "see --help"
            )
    if "use_cpu" in known and "use_cpu" not in values and "--use_cpu" not in arguments:
        import torch  # late: a recipe that does not train should start at once

        if not torch.accelerator.is_available():
            arguments += ["--use_cpu", "true"]
    if "report_to" in known and "report_to" not in values and "--report_to" not in arguments:
        there = find_spec("trackio") is not None
        arguments += ["--report_to", "trackio" if there else "none"]
        if not there:
            say_once("no curves are kept: pip install trackio, or write `report_to: none`")
    for name in [n for n, kind in known.items() if takes_mapping(kind) and f"--{n}" in arguments]:
        where = arguments.index(f"--{name}")
        text = " ".join(arguments[where + 1 : where + 2])
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"`--{name} {text}` is not JSON or YAML", fix="quote it: '{\"key\": 1}'") from None
        check_type(name, values[name], known[name], f"--{name}")
        del arguments[where : where + 2]
    from trl import TrlParser

    parser = TrlParser(list(types))

    def complain(message: str):  # argparse prints five kilobytes of usage here
        if choice := re.match(r"argument --(\w+).*: invalid choice: '(.*?)' .choose from (.*)\)", message):
            near = get_close_matches(choice[2], re.findall(r"'(.*?)'", choice[3]), n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"write one of {choice[3][:300]}"
            raise InputError(f"`{choice[1]}: {choice[2]}` is no choice", "the command line", fix)
        raise InputError(message, "the command line", "see --help")

    parser.error = complain
    os.environ.update({name: str(value) for name, value in (values.pop("env", None) or {}).items()})
    parser.set_defaults_with_config(**values)
    where = config or "the command line"
    settings = vars(parser.parse_known_args(arguments)[0])
    check_numbers({name: value for name, value in settings.items() if f"--{name}" in arguments}, "the command line")
    check_numbers(settings, where)
    try:
        return tuple(parser.parse_args_into_dataclasses(args=arguments))
    except InputError as error:
        raise InputError(error.what, error.where or where, error.fix) from None
    except ValueError as error:  # upstream's, of settings that do not go together
        fix = f"correct {named_in(str(error), settings) or 'it'}; --help says what each setting may be"
        raise InputError(str(error), where, fix) from error
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        fix = "give the launcher another; `--main_process_port 0` takes one that is free"
        raise InputError(f"port {os.environ.get('MASTER_PORT')} is in use by another process", "MASTER_PORT", fix) from None


def named_in(message: str, settings: dict[str, Any]) -> str:
    """The settings that a message of upstream's speaks of: by name, else by value, else by the end of the name and the value."""
    words = re.findall(r"[\w.-]+", message)
    found = [name for name in settings if name in words]
    found = found or [name for name, value in settings.items() if isinstance(value, str) and value == words[0]]
    found = found or [name for name, value in settings.items() if name.split("_")[-1] in words and str(value) in words]
    return ", ".join(f"`{name}`" for name in found)


def quieten() -> None:
    """Silence what says nothing about the run: bars for files of a second, and deprecations that users can't act on."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def run(main: Callable) -> None:
    """Call a recipe's `main` with the classes that it asks for, read from the command line, and end the process as it ended.

    The exit status is 0 for a finished run, `errors.SAVED` for one that was asked to stop and can go on, `MISTAKEN` for what the
    user can mend (three lines, no traceback) and `CRASHED` for anything else. run.json has it too, with the reason.
    """
    STOP.listen()
    given: tuple = ()
    try:
        quieten()
        given = parse(list(get_type_hints(main).values()))
        main(*given)
    except SystemExit as asked:
        if isinstance(asked, Preempted):
            why = STOP.asked or "another process of this run was asked to stop"
            say_once(f"{why}: {how_far()}")
            end(SAVED, why)
        elif Run.under_way:  # a library's or a reward function's: with whatever status, the run is not finished
            end(CRASHED, f"sys.exit({asked.code!r})")
            raise RuntimeError(f"sys.exit({asked.code!r}) in the middle of the run") from asked
        raise
    except KeyboardInterrupt:
        say_once(f"interrupted from the keyboard: {how_far()}")
        end(INTERRUPTED, "interrupted from the keyboard")
        sys.exit(INTERRUPTED)
    except (InputError, RunError) as error:
        say_once(f"error: {error}")
        end(error.status, str(error))
        sys.exit(error.status)
    except BaseException as error:
        if memory := out_of_memory(error, given):
            say_once(f"error: {memory}")
            end(CRASHED, str(memory))
            sys.exit(CRASHED)
        if lost_a_neighbour(error):  # its own traceback, if there was one, stands above
            status = end(CRASHED, "another process of this run ended")
            print(f"error: process {os.environ.get('RANK')} ends because another process of this run did", file=sys.stderr)
            sys.exit(status)
        end(CRASHED, f"{type(error).__name__}: {error}")
        raise


def say_once(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def how_far() -> str:
    step = Run.under_way and Run.under_way.record.get("saved_step")
    return f"{f'saved step {step}' if step else 'nothing was saved yet'}; run the same command to go on"


def end(status: int, reason: str) -> int:
    """Leave how it ended in run.json, where a run was under way; the status that stands there."""
    return Run.under_way.ended(status, reason) if Run.under_way else status


def lost_a_neighbour(error: BaseException) -> bool:
    """Whether processes that talk to each other stopped doing so: a consequence, not a cause."""
    gloo, store = ("Connection closed by peer", "Connection reset by peer", "Broken pipe"), "Connection was likely closed"
    words = (*gloo, store, "NCCL communicator was aborted")
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return not alone and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def out_of_memory(error: BaseException, given: tuple) -> RunError | None:
    """In place of PyTorch's word for it: the settings that need less memory and compute the same."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and any(w in str(error) for w in words)):
        return None
    args = next((one for one in given if hasattr(one, "gradient_accumulation_steps")), None)
    if args is None or args.per_device_train_batch_size < 2:
        return RunError(f"out of memory: {error}", fix="a shorter `max_length`, `gradient_checkpointing: true`, or a smaller model")
    rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    part = max(n for n in range(1, rows // 2 + 1) if rows % n == 0)
    fix = f"write `per_device_train_batch_size: {part}` and `gradient_accumulation_steps: {steps * rows // part}`, the same"
    return RunError(
        f"out of memory: {error}", str(args.output_dir), f"{fix} {rows * steps} rows a step, and run it again: it goes on"
    )
