"""A conversation in the terminal, or through a pipe: commands, several rungs, and the page's server as a process of its own."""

import functools
import http.client
import io
import json
import os
import runpy
import signal
import subprocess
import sys

import pytest
from groundup import record
from groundup.conversation import Speaker
from groundup.errors import InputError
from groundup.terminal import CONTROL

from recipes.miniature import REPOSITORY, load_recipe

SCRIPT = str(REPOSITORY / "recipes" / "chat.py")
ASKED = "Where does Ada live?"
NOTHING = {"temperature": 0, "max_tokens": 8, "seed": None, "web": False, "port": 0}


@pytest.fixture(scope="module")
def stages(talker, tmp_path_factory):
    """The same weights as two rungs, one of which has learned no chat."""
    root = tmp_path_factory.mktemp("stages")
    for rung in ("pretrain", "sft"):
        (root / rung).mkdir()
        for file in talker.iterdir():
            (root / rung / file.name).write_bytes(file.read_bytes())
        record.write(root / rung, {"rung": rung})
    return root


@pytest.fixture
def talk(monkeypatch, capsys):
    """What is printed, on standard output and standard error, when lines are piped into the recipe's `main`."""

    def talk(lines, *models, **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        load_recipe("chat").main([str(model) for model in models], **{**NOTHING, **options})
        return capsys.readouterr()

    return talk


def said(stage, *turns):
    """The reply after turns of the user and of the model."""
    chat = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return "".join(Speaker(str(stage)).reply(chat, 0, 8))


def shown(text):
    return text.translate(CONTROL)


def test_question_through_a_pipe(stages):
    command = [sys.executable, SCRIPT, str(stages / "sft"), "--temperature", "0", "--max_tokens", "8"]
    done = subprocess.run(command, input=ASKED, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(said(stages / "sft", ASKED)) + "\n"


def test_what_a_model_says_moves_no_cursor(talk, stages, monkeypatch):
    monkeypatch.setattr(Speaker, "reply", lambda *args: ["a\x1b[2Jb", "\rc\x9b\x7f", "\td\n"])
    assert talk([ASKED], stages / "sft").out == "a\ufffd[2Jb\ufffdc\ufffd\ufffd\td\n\n"


def test_what_was_said_is_remembered_until_reset(talk, stages):
    first = said(stages / "sft", ASKED)
    second = said(stages / "sft", ASKED, first, "Why?")
    found = talk([ASKED, "", "Why?", "/reset", ASKED, "/exit", "Never"], stages / "sft")
    assert found.out == shown(f"{first}\n{second}\n{first}\n")


def test_system_message_is_set_and_starts_anew(talk, stages, monkeypatch):
    kept = []
    monkeypatch.setattr(Speaker, "reply", lambda self, messages, *settings: kept.append(messages) or ["yes"])
    talk(["Hi", "/system Be brief.", "one", "two", "/reset", "three", "/system", "four"], stages / "sft")
    told = ["system", "Be brief."]
    assert [[word for message in messages for word in message.values()] for messages in kept] == [
        ["user", "Hi"],
        [*told, "user", "one"],
        [*told, "user", "one", "assistant", "yes", "user", "two"],
        [*told, "user", "three"],
        ["user", "four"],
    ]


def test_rungs_reply_one_after_another_and_those_without_chat_are_named(talk, stages):
    found = talk([ASKED, "/system Be brief."], stages / "pretrain", stages / "sft")
    replies = f"pretrain: {said(stages / 'pretrain', ASKED)}\nsft: {said(stages / 'sft', ASKED)}\n"
    assert found.out == shown(replies)
    assert "pretrain has learned no chat: it goes on with what you write as text" in found.err
    assert "sft has learned" not in found.err
    assert "pretrain takes no system message" in found.err and "sft takes" not in found.err


def test_command_that_there_is_none_of(talk, stages):
    found = talk(["/help"], stages / "sft")
    assert found.out == "" and "no command `/help`: /reset" in found.err


def test_mistakes_are_three_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: no model in")


def test_what_cannot_be_is_refused(talk, stages):
    with pytest.raises(InputError, match="cannot be"):
        talk([ASKED], stages / "sft", temperature=-1)


@pytest.mark.parametrize("when", ["after an answer", "beside an idle connection", "while a reply streams", "while a reply is made"])
def test_server_says_where_it_is_and_ends_on_interrupt(stages, when):
    command = [sys.executable, SCRIPT, str(stages / "sft"), "--web", "--port", "0"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which what a shell starts in the background ignores
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONUNBUFFERED": "1"}, preexec_fn=heed)
    try:
        url = process.stdout.readline().split()[0]
        assert url.startswith("http://127.0.0.1:")
        client = http.client.HTTPConnection(url.split("/")[2])
        client.request("GET", "/v1/models")
        assert [model["id"] for model in json.load(client.getresponse())["data"]] == ["sft"]
        if when == "after an answer":
            client.close()
        elif "reply" in when:  # of 470 tokens: it is far from its end
            asked = {
                "model": "sft",
                "messages": [{"role": "user", "content": ASKED}],
                "max_tokens": 470,
                "stream": "streams" in when,
            }
            client.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
            if asked["stream"]:
                assert client.getresponse().read(300).count(b"data: ")
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate()
    assert (process.returncode, said) == (0, ("\n", ""))
