"""Every failure names what, where and the fix: what a user reads, word for word, for each mistake in a table.

Directories are written in capitals: REPO, the RUNGS that were trained, and FILES, which the mistakes are made in.
"""

import errno
import json
import os
import re
import shutil
import socket
import textwrap
from pathlib import Path

import pytest
from groundup.checkpoint import Lock
from groundup.command_line import parse
from groundup.errors import InputError, RunError
from groundup.tokenizer import train_tokenizer
from recipes.miniature import REPOSITORY, interrupt, load_recipe, run_recipe

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Dorn."}]
ROW = json.dumps({"messages": TURNS}) + "\n"
MESSAGES = Path(__file__).with_name("messages.md").read_text(encoding="utf-8")
GOLDEN = dict(re.findall(r"^## (.*)\n\n((?:    .+\n)+)", MESSAGES, re.MULTILINE))
CASES = {}


def mistake(recipe, name=None):
    """A function of a Maker that gives the settings, or the YAML, of a recipe to be refused."""

    def register(make):
        CASES[name or make.__name__.replace("_", " ")] = (recipe, make)
        return make

    return register


def settings(recipe, **given):
    mistake(recipe, f"{recipe}.py, " + ", ".join(f"{key}: {json.dumps(value)}" for key, value in given.items()))(
        lambda maker: given
    )


def rows(recipe, content, name, suffix="jsonl", **given):
    """A file of rows, and all of it is read."""
    mistake(recipe, name)(lambda maker: {"dataset": maker.file(f"rows.{suffix}", content), "max_rows": None} | given)


class Maker:
    """Makes what the mistakes need, in a directory of the test's own."""

    def __init__(self, path, rungs):
        self.path, self.rungs = path, rungs

    def file(self, name, content):
        path = self.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def model(self, rung="sft", **config):
        """A copy of a rung's model without its record, its config.json changed."""
        directory = self.path / "model"
        ignored = shutil.ignore_patterns("checkpoint-*", "run.json")
        shutil.copytree(self.rungs[rung].directory, directory, ignore=ignored)
        known = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**known, **config}))
        return directory


# ---- Configuration


def yaml(recipe, text, name):
    mistake(recipe, name)(lambda maker: maker.file(f"{recipe}.yaml", text))


yaml("sft", "dataset: a\nlearning_rte: 1.0e-3\noutput_dir: o\n", "misspelt key")
yaml("sft", "dataset: a\nseed: 1\noutput_dir: o\nseed: 2\n", "key given twice")
yaml("sft", "dataset: a\nmax_steps: 1.5\noutput_dir: o\n", "half a step")
yaml("sft", "dataset: a\nbf16: yess\noutput_dir: o\n", "no truth value")
yaml("sft", "dataset: [a\noutput_dir: o\n", "no YAML")
yaml("sft", "- dataset\n", "list for a mapping")
yaml("sft", "dataset: a\nlr_scheduler_type: cosin\noutput_dir: o\n", "no such schedule")
yaml("sft", "output_dir: o\n", "no data")
settings("sft", learning_rate=-1)
settings("sft", max_steps=1.5)
settings("sft", max_steps=0)
settings("sft", per_device_train_batch_size=0)
settings("sft", gradient_accumulation_steps=0)
settings("sft", save_steps=0)
settings("sft", seed=-1)
settings("sft", max_length=0)
settings("sft", warmup_steps=-1)
settings("sft", eval_strategy="steps", eval_steps=2)
settings("sft", save_strategy="best")
settings("sft", report_to="wandbb")
settings("sft", optim="adamw_torhc")
settings("grpo", num_generations=1)
settings("grpo", num_generations=3)
settings("grpo", temperature=0)
settings("grpo", eval_strategy="steps", eval_steps=2)
settings("grpo", max_completion_length=5000)
settings("ppo", gamma=2)
settings("pretrain", lr_scheduler_kwargs={"num_decay_stepz": 2})
settings("sft", load_in_4bit=True)
settings("sft", attn_implementation="flash_attention_9")
settings("ppo", rewards=[{"name": "corect_answer"}])
settings("pretrain", model_config={"hiden_size": 32})
settings("pretrain", model_config={"hidden_size": 33, "num_attention_heads": 2})
settings("pretrain", model_type="qwenn3")
settings("tokenizer", vocab_size=10)


# ---- Rows

rows("sft", ROW * 3 + '{"messages": [\n', "line that is cut off")
rows("sft", (ROW * 2).replace("\n", "\r\n").encode() + b'{"messages": [\r\n', "line that is cut off, after CRLF")
rows("sft", b"\xef\xbb\xbf" + ROW.encode() + b"[1]\n", "line that is no object, after a BOM")
rows("sft", ROW + "\0\0\0\n", "NUL bytes")
rows("sft", ROW.encode() + ROW.replace("Dorn", "Dörn").encode("latin1").replace(b"\\u00f6", b"\xf6"), "Latin-1")
rows("sft", ROW.encode("utf-16"), "UTF-16")
rows("sft", ROW.replace("assistant", "asistant"), "misspelt role")
rows("sft", json.dumps({"mesages": TURNS}) + "\n", "misspelt column")
rows("pretrain", '{"content": "Some words."}\n', "column of another name")
rows("pretrain", '{"text": ""}\n' * 4 + '{"text": null}\n', "nothing but empty text")
rows("pretrain", '{"text": "hi"}\n', "less than a row of text")
LONG = json.dumps({"messages": [{"role": "user", "content": "Who is it? " * 300}, TURNS[1]]}) + "\n"
rows("sft", LONG * 12 + ROW * 8, "most of it too long")
rows("sft", LONG * 20, "all of it too long")
SAME = json.dumps({"prompt": "Who?", "chosen": "Dorn.", "rejected": "Dorn."}) + "\n"
rows("reward", SAME * 4, "chosen is rejected")
rows("sft", b"PAR1nonsensePAR1", "damaged parquet", suffix="parquet")
rows("sft", "a,b\n1,2\n", "another kind of file", suffix="csv")
rows("sft", "", "empty file")


@mistake("sft")
def train_and_test_files_in_one_directory(maker):
    (maker.path / "rows").mkdir()
    for name in ("rows/train.jsonl", "rows/test.jsonl"):
        maker.file(name, ROW)
    return {"dataset": str(maker.path / "rows")}


@mistake("sft")
def data_of_the_hub_without_a_network(maker):
    return {"dataset": "someone/rows"}


# ---- Models


@mistake("sft")
def model_of_the_hub_without_a_network(maker):
    return {"model_name_or_path": "someone/model"}


@mistake("pretrain")
def tokenizer_of_the_hub_without_a_network(maker):
    return {"tokenizer_path": "someone/model"}


@mistake("sft")
def rung_before_this_one_has_not_run(maker):
    return {"model_name_or_path": "out/nano/pretrain"}


@mistake("sft")
def no_tokenizer_beside_the_model(maker):
    model = maker.model()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    return {"model_name_or_path": str(model)}


@mistake("sft")
def tokenizer_with_more_tokens_than_the_model(maker):
    model = maker.model()
    with open(maker.rungs.world / "documents.jsonl", encoding="utf-8") as file:
        train_tokenizer((json.loads(line)["text"] for line in file), 600).save_pretrained(model)
    return {"model_name_or_path": str(model)}


@mistake("sft")
def no_template_beside_the_model(maker):
    model = maker.model()
    (model / "chat_template.jinja").unlink()
    return {"model_name_or_path": str(model)}


@mistake("sft")
def template_that_is_none(maker):
    model = maker.model()
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content']")
    return {"model_name_or_path": str(model)}


@mistake("sft")
def padding_that_is_the_end_of_a_turn(maker):
    model = maker.model()
    known = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(known | {"pad_token": known["eos_token"]}))
    return {"model_name_or_path": str(model)}


@mistake("sft")
def weights_that_are_cut_off(maker):
    model = maker.model()
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return {"model_name_or_path": str(model)}


@mistake("sft")
def weights_that_are_not_all_there(maker):
    return {"model_name_or_path": str(maker.model(num_hidden_layers=3, layer_types=None))}


@mistake("sft")
def weights_of_another_size(maker):
    return {"model_name_or_path": str(maker.model(intermediate_size=48))}


@mistake("ppo")
def reward_model_that_is_none(maker):
    return {"rewards": [{"model": str(maker.rungs["sft"].directory)}]}


@mistake("dpo")
def reward_model_to_start_from(maker):
    return {"model_name_or_path": str(maker.rungs["reward"].directory)}


@mistake("sft")
def architecture_that_transformers_does_not_know(maker):
    return {"model_name_or_path": str(maker.model(model_type="qwen9"))}


@mistake("sft")
def model_that_was_changed_since_its_rung(maker):
    model = maker.model()
    shutil.copy(maker.rungs["sft"].directory / "run.json", model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    return {"model_name_or_path": str(model)}


# ---- Where it runs


@mistake("sft")
def settings_other_than_before(maker):
    interrupt(maker.rungs["sft"], maker.path / "out", 2)
    return {"learning_rate": 0.5}


@mistake("sft")
def rows_other_than_before(maker):
    directory = interrupt(maker.rungs["sft"], maker.path / "out", 2)
    record = json.loads((directory / "run.json").read_text())
    record["data"][0]["sha256"] = "0123456789abcdef" * 4
    (directory / "run.json").write_text(json.dumps(record))
    return {}


@mistake("sft")
def checkpoints_that_are_all_damaged(maker):
    directory = interrupt(maker.rungs["sft"], maker.path / "out", 2)
    (directory / "checkpoint-2" / "optimizer.pt").unlink()
    return {}


@mistake("sft")
def directory_that_cannot_be_written_to(maker):
    maker.file("out", "a file")
    return {}


@mistake("sft")
def directory_on_a_disk_that_is_read_only(maker):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    maker.patch.setattr("groundup.checkpoint.open", refuse, raising=False)
    return {}


def fill_the_disk(maker):
    full = type("Usage", (), {"total": 10**12, "used": 10**12, "free": 1000})
    maker.patch.setattr("shutil.disk_usage", lambda path: full)


@mistake("sft")
def disk_that_is_full(maker):
    fill_the_disk(maker)
    return {}


@mistake("sft")
def disk_that_is_full_when_a_checkpoint_is_due(maker):
    fill_the_disk(maker)
    return {"check_memory": False}


def plain(error, maker, tmp_path) -> str:
    """What a user reads, without what is different on another machine or day."""
    text = str(error)
    for path, name in ((tmp_path, "FILES"), (maker.rungs.root, "RUNGS"), (maker.rungs.world, "WORLD"), (REPOSITORY, "REPO")):
        text = text.replace(str(path), name)
    return re.sub(r"\b[0-9a-f]{12}\b", "HASH", text)


def test_every_mistake_has_its_message():
    assert list(GOLDEN) == list(CASES) and len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_told_word_for_word(name, rungs, tmp_path, monkeypatch):
    recipe, make = CASES[name]
    maker = Maker(tmp_path, rungs)
    maker.patch = monkeypatch
    for rung in ("sft", "reward"):
        rungs[rung]
    given = make(maker)
    with pytest.raises((InputError, RunError)) as told:
        if isinstance(given, str):
            parse(list(load_recipe(recipe).main.__annotations__.values()), ["--config", given])
        else:
            kept = {key: value for key, value in {**rungs.settings(recipe), **given}.items() if value is not None}
            run_recipe(recipe, tmp_path / "out", **kept)
    error = told.value
    assert plain(error, maker, tmp_path) == textwrap.dedent(GOLDEN[name]).strip()
    assert error.what and error.fix and (error.where or error.what.startswith(("`", str(tmp_path)))), (
        "a place, or the setting itself"
    )


# ---- As a user reads them: on standard error, without a traceback


def lines_of(recipe) -> str:
    return recipe.stderr[recipe.stderr.index("error: ") :]


def test_two_runs_in_one_directory(rungs, start_recipe, tmp_path):
    lock = Lock(tmp_path / "out")
    lock.file.seek(0)  # not opened again: to close it would end the lock
    holder = json.loads(lock.file.read())
    recipe = start_recipe("sft", tmp_path / "out", rungs.settings("sft"))
    assert recipe.wait() == 2 and "Traceback" not in recipe.stderr
    assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert lines_of(recipe) == (
        f"error: the directory is in use by process {os.getpid()} on {socket.gethostname()}, since {holder['since']}\n"
        f"  where: {tmp_path}/out\n"
        "  fix:   wait for it or stop it, or give another `output_dir`\n"
    )
    lock.release()


def test_port_in_use(rungs, start_recipe, tmp_path):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        recipe = start_recipe("sft", tmp_path / "out", rungs.settings("sft"), ACCELERATE_USE_CPU="true", **ranks)
        assert recipe.wait() == 2, recipe.stderr
    assert "Traceback" not in recipe.stderr
    assert lines_of(recipe) == (
        f"error: port {port} is in use by another process\n"
        "  where: MASTER_PORT\n"
        "  fix:   give the launcher another; `--main_process_port 0` takes one that is free\n"
    )


@pytest.mark.parametrize("name", ["sft.py, learning_rate: -1", "NUL bytes", "model of the hub without a network"])
def test_no_traceback_and_status_2(name, rungs, start_recipe, tmp_path):
    recipe_name, make = CASES[name]
    maker = Maker(tmp_path, rungs)
    kept = {key: value for key, value in {**rungs.settings(recipe_name), **make(maker)}.items() if value is not None}
    recipe = start_recipe(recipe_name, tmp_path / "out", kept)
    assert recipe.wait() == 2 and "Traceback" not in recipe.stderr
    assert plain(lines_of(recipe), maker, tmp_path) == f"error: {textwrap.dedent(GOLDEN[name])}"
