"""One page and an OpenAI-compatible endpoint on this machine, for models in memory.

`transformers serve` (5.23) is the larger thing of the kind. It needs fastapi and openai beside it, lists the models of the Hub's
cache and not directories, and asks a base model in a chat template that it has not learned. This stands on the standard library.
"""

import contextlib
import json
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from groundup.conversation import Reply, Speaker
from groundup.errors import InputError

PAGE = Path(__file__).with_name("chat.html")
LARGEST = 1 << 20  # bytes of a request
# What would change the answer and is not done here, unless it asks for what comes anyway.
UNDONE = {"n": (1,), "stop": ([], ""), "tools": ([],), "response_format": ({"type": "text"},), "logprobs": (False,)}
UNDONE |= {"frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},)}
# The page loads nothing from anywhere, and what a model says is text in it.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"
)


class Server(ThreadingHTTPServer):
    """Answers on 127.0.0.1 only; port 0 takes any that is free (`server_port`)."""

    daemon_threads = False  # closing waits for them: a thread that the interpreter leaves within PyTorch aborts the process

    def __init__(self, speakers: Sequence[Speaker], port: int):
        self.speakers = {speaker.name: speaker for speaker in speakers}
        self.began = int(time.time())
        self.connections: set[socket.socket] = set()
        self.replies: set[Reply] = set()
        self.closing = False
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    @contextlib.contextmanager
    def under_way(self, reply: Reply) -> Iterator[None]:
        """While it is read, `reply` ends with the server."""
        self.replies.add(reply)
        if self.closing:
            reply.stop()
        try:
            yield
        finally:
            self.replies.discard(reply)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone is no error of ours
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """End replies and connections, the idle ones too, and wait until their threads have ended."""
        self.closing = True
        for reply in list(self.replies):
            reply.stop()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


def serve(speakers: Sequence[Speaker], port: int) -> None:
    """Until ^C.

    Raises:
        InputError: the port is taken.
    """
    try:
        server = Server(speakers, port)
    except OSError as error:
        raise InputError(f"port {port}: {error.strerror}", "--port", "write another, or 0 for any that is free") from None
    with server:
        try:
            threading.Thread(target=server.serve_forever).start()  # not here: ^C would come between any two lines of it
            print(f"http://127.0.0.1:{server.server_port}/   (^C ends it; the API is below /v1)", flush=True)
            while True:
                time.sleep(0.5)  # not for ever: a signal that comes an instant before a wait is seen after it
        except KeyboardInterrupt:
            print()
        finally:
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.is_ours():
            return
        if self.path == "/":
            self.send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/v1/models":
            models = [
                {"id": name, "object": "model", "created": self.server.began, "owned_by": "groundup", "chats": speaker.chats}
                for name, speaker in self.server.speakers.items()
            ]
            self.send_json({"object": "list", "data": models})
        else:
            self.refuse(HTTPStatus.NOT_FOUND, f"nothing is at {self.path}")

    def do_POST(self) -> None:
        said = self.headers.get("Content-Length") or ""
        if not re.fullmatch("[0-9]{1,15}", said):  # none at all (chunks), or a negative one, which would read for ever
            self.close_connection = True
            self.refuse(HTTPStatus.LENGTH_REQUIRED, "write Content-Length, in bytes")
            return
        length = int(said)
        if length > LARGEST:
            self.close_connection = True  # what it sent is not read
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {LARGEST} bytes")
            return
        body = self.rfile.read(length)
        if not self.is_ours():
            return
        if self.path != "/v1/chat/completions":
            self.refuse(HTTPStatus.NOT_FOUND, f"nothing is at {self.path}")
            return
        try:
            asked = json.loads(body)
            reply = self.reply(asked)
        except (ValueError, RecursionError) as error:  # InputError, and what json has to say
            self.refuse(HTTPStatus.BAD_REQUEST, "; ".join(line.strip() for line in str(error).splitlines()))
            return
        common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked["model"]}
        with self.server.under_way(reply):
            self.stream(common, reply) if asked.get("stream") else self.answer(common, reply)

    def answer(self, common: dict, reply: Reply) -> None:
        """All of it at once."""
        message = {"role": "assistant", "content": "".join(reply)}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish}
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
        usage["total_tokens"] = sum(usage.values())
        self.send_json({**common, "object": "chat.completion", "choices": [choice], "usage": usage})

    def is_ours(self) -> bool:
        """Refuse what a page from elsewhere might send through the user's browser: another host's name for this machine, a form."""
        names = {f"{host}:{self.server.server_port}" for host in ("127.0.0.1", "localhost")}
        if self.headers.get("Host") not in names:
            self.refuse(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost only")
            return False
        if self.command == "POST" and self.headers.get_content_type() != "application/json":
            self.refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "write Content-Type: application/json")
            return False
        return True

    def reply(self, asked: Any) -> Reply:
        """The reply to a request of the OpenAI API.

        Raises:
            InputError: no such model, messages that are none, or settings that cannot be.
        """
        if not isinstance(asked, dict) or not isinstance(asked.get("model"), str) or asked["model"] not in self.server.speakers:
            raise InputError("no such model", "model", f"one of {', '.join(self.server.speakers)}")
        messages = asked.get("messages")
        is_list = isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages)
        if not is_list or not all(isinstance(m.get(key), str) for m in messages for key in ("role", "content")):
            raise InputError("messages are a list of {role, content}, both text", "messages")
        for name, usual in UNDONE.items():
            if asked.get(name) is not None and asked[name] not in usual:
                raise InputError(f"`{name}` is not done here", name, "leave it out")
        numbers = {"temperature": (int, float), "top_p": (int, float), "max_tokens": int, "max_completion_tokens": int, "seed": int}
        for name, kind in numbers.items():
            if asked.get(name) is not None and (not isinstance(asked[name], kind) or isinstance(asked[name], bool)):
                raise InputError(f"`{name}` is no number", name)
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens")
        settings = asked.get("temperature"), limit, asked.get("seed"), asked.get("top_p")
        return self.server.speakers[asked["model"]].reply(messages, *settings)

    def stream(self, common: dict, reply: Reply) -> None:
        """Server-sent events, a chunk a piece. A client that has gone ends the generation."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        for name, value in (("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"), ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        try:
            for event in self.events(common, reply):
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
        except ConnectionError:
            reply.stop()

    def events(self, common: dict, reply: Reply) -> Iterator[str]:
        def chunk(delta: dict, finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return json.dumps({**common, "object": "chat.completion.chunk", "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        for piece in reply:
            yield chunk({"content": piece})
        yield chunk({}, reply.finish)
        yield "[DONE]"

    def send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send(json.dumps(value).encode(), "application/json", status)

    def refuse(self, status: HTTPStatus, why: str) -> None:
        self.send_json({"error": {"message": why, "type": "invalid_request_error", "code": int(status)}}, status)

    def log_message(self, *args: Any) -> None:
        """Requests are not logged: what is said stays in the browser."""
