"""The endpoint, spoken to as clients of the OpenAI API do, and the page, used as people do."""

import http.client
import json
import threading

import pytest
from browser import browser  # noqa: F401
from groundup.conversation import Speaker
from groundup.errors import InputError
from groundup.server import PAGE, Server, serve

CHAT = [{"role": "user", "content": "Where does Ada live?"}]


@pytest.fixture(scope="module")
def server(talker):
    """Two of the same random model, one of which has learned no chat."""
    speakers = [Speaker(str(talker), name) for name in ("sft", "pretrain")]
    speakers[1].chats = False
    with Server(speakers, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def request(server, path, asked=None, method=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    body = asked if isinstance(asked, (bytes, type(None))) else json.dumps(asked).encode()
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    response = connection.getresponse()
    response.body = response.read()
    connection.close()
    return response


def ask(server, **asked):
    return request(server, "/v1/chat/completions", {"model": "sft", "messages": CHAT, **asked})


def expected(server, model="sft", **settings):
    return "".join(server.speakers[model].reply(CHAT, **settings))


def test_models_are_listed_by_name(server):
    found = json.loads(request(server, "/v1/models").body)
    assert found["object"] == "list"
    assert [(model["id"], model["object"], model["chats"]) for model in found["data"]] == [
        ("sft", "model", True),
        ("pretrain", "model", False),
    ]


@pytest.mark.parametrize("model", ["sft", "pretrain"])
def test_answer_in_one_piece(server, model):
    found = json.loads(ask(server, model=model, temperature=0, max_tokens=12).body)
    reply = server.speakers[model].reply(CHAT, 0, 12)
    assert found["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "".join(reply)}, "finish_reason": reply.finish}
    ]
    assert (found["object"], found["model"]) == ("chat.completion", model)
    used = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
    assert found["usage"] == {**used, "total_tokens": sum(used.values())}


def test_answer_piece_by_piece(server):
    response = ask(server, stream=True, temperature=0.8, seed=3, max_completion_tokens=20, max_tokens=None)
    assert response.headers["Content-Type"] == "text/event-stream"
    *events, done, after = response.body.decode().split("\n\n")
    assert (done, after) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"]["role"] == "assistant" and choices[-1]["finish_reason"] in ("length", "stop")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    said = "".join(choice["delta"].get("content", "") for choice in choices)
    assert said == expected(server, temperature=0.8, seed=3, max_tokens=20) and len(choices) > 3


def test_client_that_has_gone_ends_the_generation(server, monkeypatch):
    kept = []
    reply = Speaker.reply
    monkeypatch.setattr(server.speakers["sft"].model.generation_config, "eos_token_id", None)  # it does not end by itself
    monkeypatch.setattr(Speaker, "reply", lambda *args: kept.append(reply(*args)) or kept[0])
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    asked = {"model": "sft", "messages": CHAT, "stream": True, "temperature": 1.0, "seed": 0, "max_tokens": 470}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read(200)
    response.close()
    connection.sock.close() if connection.sock else None
    assert kept[0].stopped.wait(120)
    with Speaker.lock:
        assert kept[0].tokens < 470


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "utf-8"),
        ([], "no such model"),
        ({"model": "grpo", "messages": CHAT}, "no such model; where: model; fix:   one of sft, pretrain"),
        ({"model": "sft"}, "messages are a list"),
        ({"model": "sft", "messages": []}, "messages are a list"),
        ({"model": "sft", "messages": ["hi"]}, "messages are a list"),
        ({"model": "sft", "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages are a list"),
        (b"[" * 100_000, "recursion"),
        (b'{"model": "sft", "seed": ' + b"1" * 5000 + b"}", "integer string"),
        (b'{"model": "sft", "messages": [{"role": "user", "content": "\\ud800"}]}', "surrogates not allowed"),
        ({"model": ["sft"], "messages": CHAT}, "no such model"),
        ({"model": "sft", "messages": [{"role": "system", "content": "So."}]}, "nothing was asked"),
        ({"model": "sft", "messages": CHAT, "n": 2}, "`n` is not done here"),
        ({"model": "sft", "messages": CHAT, "stop": ["\n"]}, "`stop` is not done here"),
        ({"model": "sft", "messages": CHAT, "top_p": 2}, "cannot be"),
        ({"model": "sft", "messages": CHAT, "temperature": "hot"}, "`temperature` is no number"),
        ({"model": "sft", "messages": CHAT, "max_tokens": True}, "`max_tokens` is no number"),
        ({"model": "sft", "messages": CHAT, "max_tokens": -1}, "cannot be"),
        ({"model": "sft", "messages": CHAT, "temperature": -1}, "cannot be"),
        ({"model": "sft", "messages": [{"role": "user", "content": "5 " * 600}]}, "longer than"),
    ],
)
def test_request_that_is_wrong_is_told_why(server, asked, why):
    response = request(server, "/v1/chat/completions", asked)
    error = json.loads(response.body)["error"]
    assert (response.status, error["type"]) == (400, "invalid_request_error") and why in error["message"]


def test_other_pages_in_the_browser_cannot_ask(server):
    asked = json.dumps({"model": "sft", "messages": CHAT}).encode()
    assert request(server, "/v1/chat/completions", asked, Content_Type="text/plain").status == 415
    assert request(server, "/v1/models", Host="evil.example").status == 403
    assert request(server, "/v1/chat/completions", asked, Host=f"evil.example:{server.server_port}").status == 403
    assert request(server, "/v1/models", Host=f"localhost:{server.server_port}").status == 200
    assert server.server_address[0] == "127.0.0.1"


def test_what_is_not_there(server):
    assert request(server, "/etc/passwd").status == request(server, "/v1/completions", {}).status == 404
    assert request(server, "/v1/models", method="DELETE").status == 501
    assert request(server, "/v1/chat/completions", b"1", Content_Length="9999999").status == 413


@pytest.mark.parametrize("length", ["-1", "x", "1" * 5000])
def test_a_length_that_is_none_is_not_waited_for(server, length):
    response = request(server, "/v1/chat/completions", b"{}", Content_Length=length)
    assert (response.status, response.headers["Connection"]) == (411, None) and b"Content-Length" in response.body


def test_what_clients_send_unasked_and_a_seed_of_any_size(server):
    usual = {"n": 1, "stop": None, "top_p": 1, "frequency_penalty": 0.0, "tools": [], "logprobs": False}
    found = [
        json.loads(ask(server, temperature=1.0, max_tokens=8, **more).body)["choices"]
        for more in ({"seed": 5}, {"seed": 5, **usual})
    ]
    assert found[0] == found[1]
    assert ask(server, max_tokens=2, seed=-(2**70)).status == 200
    likeliest = [
        json.loads(ask(server, max_tokens=8, **how).body)["choices"]
        for how in ({"temperature": 0}, {"temperature": 1, "top_p": 1e-9})
    ]
    assert likeliest[0] == likeliest[1] != found[0]


def test_port_that_is_taken_is_told(server):
    with pytest.raises(InputError, match=f"port {server.server_port}: Address already in use"):
        serve([], server.server_port)


def test_page_loads_nothing_from_elsewhere(server):
    response = request(server, "/")
    assert response.body == PAGE.read_bytes() and "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert b"http:" not in response.body and b"https:" not in response.body and b"innerHTML" not in response.body


# ---- The page


@pytest.fixture
def page(server, browser):  # noqa: F811
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    browser.wait("document.querySelectorAll('#model option').length === 3")
    yield browser
    assert browser.errors == []


def write(page, text, tokens=12):
    page.evaluate(f"$('temperature').value = 0; $('longest').value = {tokens}; $('text').focus()")
    page.write(text)
    page.press("Enter")


def replies(page):
    """The names of those that replied, turn by turn."""
    names = "[...replies.querySelectorAll('h2')].map(name => name.textContent)"
    return page.evaluate(f"[...document.querySelectorAll('.replies')].map(replies => {names})")


def last_reply(page):
    page.wait("!abort && turns.length && Object.keys(turns.at(-1).replies).length")
    return page.evaluate("[...document.querySelectorAll('article')].at(-1).querySelector('p').textContent")


def test_a_question_is_typed_and_the_answer_streams(page, server):
    page.evaluate(
        "window.seen = []; new MutationObserver(() => seen.push(document.querySelector('article p')?.textContent))"
        ".observe($('log'), {subtree: true, childList: true, characterData: true})"
    )
    write(page, CHAT[0]["content"], tokens=40)
    said = expected(server, temperature=0, max_tokens=40).lstrip()
    assert last_reply(page) == said
    seen = [text for text in dict.fromkeys(page.evaluate("seen")) if text]
    assert len(seen) > 2 and seen[-1] == said and all(said.startswith(text) for text in seen)
    assert page.evaluate("document.querySelector('.asked').textContent") == CHAT[0]["content"]
    assert page.evaluate("document.activeElement.id + $('text').value") == "text"


def test_the_next_question_comes_with_what_was_said(page, server):
    write(page, CHAT[0]["content"])
    first = last_reply(page)
    write(page, "Why?")
    raw = page.evaluate("turns[0].replies.sft.text")
    assert raw.lstrip() == first
    chat = [*CHAT, {"role": "assistant", "content": raw}, {"role": "user", "content": "Why?"}]
    assert last_reply(page) == "".join(server.speakers["sft"].reply(chat, 0, 12)).lstrip()


def test_another_rung_is_chosen_and_all_of_them(page, server):
    write(page, CHAT[0]["content"])
    last_reply(page)
    page.evaluate("$('model').focus()")
    page.press("ArrowDown")
    page.wait("$('model').value === 'pretrain'")
    write(page, CHAT[0]["content"])
    assert last_reply(page) == expected(server, "pretrain", temperature=0, max_tokens=12).lstrip()
    assert "has learned no chat" in page.evaluate("document.body.innerText")
    page.evaluate("$('model').value = ALL")
    write(page, "Why?")
    last_reply(page)
    assert replies(page) == [["sft"], ["pretrain"], ["sft", "pretrain"]]


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_is_stopped(page, how):
    page.evaluate("$('model').value = 'sft'")
    write(page, CHAT[0]["content"], tokens=440)
    page.wait("turns.at(-1)?.replies.sft?.text.length > 2")
    assert page.evaluate("$('send').hidden && !$('stop').hidden")
    page.click("#stop") if how == "button" else page.press("Escape")
    page.wait("!abort")
    assert page.evaluate("turns.at(-1).replies.sft.notes") == ["stopped"]
    assert page.evaluate("!$('send').hidden && $('stop').hidden")
    write(page, "Why?")
    assert last_reply(page)


def test_what_was_said_is_there_after_a_reload_until_a_new_chat(page):
    page.evaluate("$('model').value = ALL")
    write(page, '<b>Ada</b> & "Bo"')
    last_reply(page)
    shown = page.evaluate("$('log').innerText")
    page.reload()
    page.wait("document.querySelectorAll('article').length === 2")
    assert page.evaluate("$('log').innerText") == shown and "<b>Ada</b>" in shown
    assert page.evaluate("$('model').value") == "all, side by side"
    page.click("#new")
    assert page.evaluate("$('log').innerText + turns.length") == "0"
    page.reload()
    page.wait("document.querySelectorAll('#model option').length === 3")
    assert page.evaluate("document.querySelectorAll('article').length") == 0


def test_a_new_line_is_no_question_and_what_is_refused_is_said(page):
    page.evaluate("$('text').focus()")
    page.press("Enter")
    page.write("one")
    page.press("Enter", shift=True)
    page.write("two")
    assert page.evaluate("$('text').value") == "one\ntwo" and page.evaluate("turns.length") == 0
    page.evaluate("$('text').value = ''")
    page.errors.clear()
    write(page, "5 " * 600)
    page.wait("!abort && turns.length")
    assert "longer than" in page.evaluate("$('log').innerText")
    assert [error for error in page.errors if "400" not in error] == []
    page.errors.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(320, 568), (1280, 800)])
def test_it_fits_and_can_be_read(page, scheme, width, height):
    page.resize(width, height, scheme)
    page.evaluate("$('model').value = ALL; document.querySelector('details').open = true")
    write(page, "Unbroken" * 40)
    last_reply(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth && $('log').scrollWidth <= $('log').clientWidth")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert page.evaluate(CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3


# The least contrast between a text and what is behind it, by WCAG's formula.
CONTRAST = """
(() => {
  const style = e => getComputedStyle(e), linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = color => color.match(/[\\d.]+/g).slice(0, 3).map(c => linear(c / 255))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = e => style(e).backgroundColor === 'rgba(0, 0, 0, 0)' ? behind(e.parentElement) : style(e).backgroundColor;
  const ratios = [...document.querySelectorAll('.asked, h1, h2, article p, .note, label, summary, button, select')]
    .filter(e => e.offsetParent && e.textContent).map(e => [luminance(style(e).color), luminance(behind(e))].sort((a, b) => b - a))
    .map(([light, dark]) => (light + 0.05) / (dark + 0.05));
  return Math.min(...ratios);
})()
"""
