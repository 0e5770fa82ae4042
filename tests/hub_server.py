"""A Hub of our own on this machine: what huggingface_hub's client asks for, over HTTP, and the ways in which a Hub fails.

Repositories with branches of commits, files by git's or LFS's rules, tokens that may write or only read, private ones that are not
seen without a token. Paths, fields and headers are those that huggingface_hub 2.4 reads (hf_api.py, _commit_api.py, lfs.py).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = "hf_write" + "w" * 30, "hf_read" + "r" * 30
PATIENCE = 60  # seconds that a slow answer takes: a client that waits for it does not give up
LARGE = (".safetensors", ".pt", ".pth", ".bin")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class File:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """As git has it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        body = pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Commit:
    title: str
    files: dict[str, File]
    parent: str = ""

    @property
    def sha(self) -> str:
        text = json.dumps([self.title, self.parent, sorted((name, file.oid) for name, file in self.files.items())])
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((commit for commits in self.branches.values() for commit in commits if commit.sha == revision), None)


@dataclass
class Fault:
    """What happens to requests whose `METHOD path` the regular expression `pattern` is found in, `times` times after `skip`."""

    pattern: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    slow: bool = False
    gone: bool = False
    after: bool = False  # the request is heeded, and its answer is lost
    times: int = 10**9
    skip: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "HubServer"

    def log_message(self, *arguments):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def answer(self, status: int = 200, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer(status, {"error": message or code}, {"X-Error-Code": code, "X-Error-Message": message or code})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def act(self) -> None:
        hub, url = self.server, urlsplit(self.path)
        self.body = self.read_body()
        self.query = parse_qs(url.query)
        line = f"{self.command} {url.path}"
        fault = hub.note(line)
        if fault and fault.slow:
            hub.closing.wait(PATIENCE)
        if fault and (fault.gone or fault.slow):
            self.close_connection = True
            return
        if fault and fault.status and not fault.after:
            self.answer(fault.status, b"<html>", {"X-Error-Message": "as the test asks", **fault.headers})
            return
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, line):
                with hub.lock:
                    if fault and fault.after:
                        self.answer = lambda *a, **k: None  # type: ignore[method-assign]
                        self.close_connection = True
                    getattr(self, method)(*map(unquote, match.groups()))
                return
        self.refuse(404, message=f"the test's Hub knows no {line}")

    do_GET = do_POST = do_PUT = do_HEAD = act

    # -- who

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def may(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None when the request has been refused."""
        repository = self.server.repositories.get(name)
        if self.token not in (None, WRITE, READ):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if not repository or repository.private and not self.token:
            return self.refuse(404 if self.token else 401, "RepoNotFound")
        if write and (self.token != WRITE or not name.startswith("me/")):
            return self.refuse(403, message="you have no write access")
        return repository

    def whoami(self) -> None:
        if self.token not in (WRITE, READ):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        self.answer(200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def auth_check(self, name: str, write: str | None = None) -> None:
        if self.may(name, write="/auth-check/write" in self.path):
            self.answer(200, {})

    # -- repositories

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}", "name": name}
        if self.token not in (WRITE, READ):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if name in self.server.repositories:
            return self.answer(409, {**url, "error": "You already created this model repo"})
        if self.token != WRITE or not name.startswith("me/"):
            return self.refuse(403, message="you have no right to create a model under this namespace")
        self.server.make(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, url)

    def info(self, name: str, revision: str = "main") -> None:
        if repository := self.may(name):
            if not (commit := repository.find(revision)):
                return self.refuse(404, "RevisionNotFound")
            siblings = [{"rfilename": path} for path in commit.files]
            body = {"_id": "0", "id": name, "modelId": name, "sha": commit.sha, "private": repository.private, "siblings": siblings}
            self.answer(200, {**body, "tags": [], "downloads": 0, "likes": 0, "disabled": False, "gated": False})

    def tree(self, name: str, revision: str) -> None:
        if repository := self.may(name):
            if not (commit := repository.find(revision)):
                return self.refuse(404, "RevisionNotFound")
            files = []
            for path, file in commit.files.items():
                files.append({"type": "file", "path": path, "size": len(file.content), "oid": file.oid})
                if file.lfs:
                    files[-1]["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
            self.answer(200, files)

    def branch(self, name: str, branch: str) -> None:
        if repository := self.may(name, write=True):
            if branch in repository.branches:
                return self.refuse(409, message="Reference already exists")
            repository.branches[branch] = [repository.find(json.loads(self.body or b"{}").get("startingPoint", "main"))]
            self.answer(200, {})

    # -- up

    def validate(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if repository := self.may(name, write=True):
            commit, files = repository.find(revision), []
            for entry in json.loads(self.body)["files"]:
                there = commit.files.get(entry["path"])
                mode = "lfs" if entry["path"].endswith(LARGE) else "regular"
                files.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there and there.etag})
            self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        if self.may(name, write=True):
            objects = []
            for entry in json.loads(self.body)["objects"]:
                if entry["oid"] not in self.server.objects:
                    hrefs = {"upload": f"{self.server.url}/lfs/{entry['oid']}", "verify": f"{self.server.url}/verify"}
                    entry = {**entry, "actions": {key: {"href": href} for key, href in hrefs.items()}}
                objects.append(entry)
            self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, message="sha256 differs")
        self.server.objects[oid] = self.body
        self.answer(200, {})

    def verify(self) -> None:
        asked = json.loads(self.body)
        self.answer(200 if len(self.server.objects.get(asked["oid"], b"")) == asked["size"] else 404, {})

    def commit(self, name: str, revision: str) -> None:
        if not (repository := self.may(name, write=True)):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        last = repository.branches[revision][-1]
        files = dict(last.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.refuse(400, message=f"{value['path']} was never uploaded")
                files[value["path"]] = File(self.server.objects[value["oid"]], lfs=True)
            else:
                del files[value["path"]]
        made = Commit(lines[0]["value"]["summary"], files, last.sha)
        repository.branches[revision].append(made)
        self.answer(200, {"success": True, "commitOid": made.sha, "commitUrl": f"{self.server.url}/{name}/commit/{made.sha}"})

    # -- down

    def resolve(self, name: str, revision: str, path: str) -> None:
        if repository := self.may(name):
            commit = repository.find(revision)
            if not commit or path not in commit.files:
                return self.refuse(404, "EntryNotFound" if commit else "RevisionNotFound")
            file, status = commit.files[path], 200
            content, headers = file.content, {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(asked[1])
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
                content = content[start:]
            self.answer(status, content, headers)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{REPO}/auth-check(/write)?", "auth_check"),
    (rf"GET /api/models/{REPO}", "info"),
    (rf"GET /api/models/{REPO}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{REPO}/tree/([^/]+)", "tree"),
    (rf"POST /api/models/{REPO}/branch/([^/]+)", "branch"),
    (rf"POST /api/models/{REPO}/preupload/([^/]+)", "preupload"),
    (rf"POST /api/models/{REPO}/commit/([^/]+)", "commit"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(\w+)", "upload"),
    ("POST /verify", "verify"),
    (rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)", "resolve"),
]


class HubServer(ThreadingHTTPServer):
    """`repositories` and what was asked of it (`requests`, as `METHOD path`), while it runs."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock, self.closing = threading.RLock(), threading.Event()

    def make(self, name: str, private: bool = True) -> Repository:
        first = Commit("initial commit", {".gitattributes": File(ATTRIBUTES, lfs=False)})
        self.repositories[name] = Repository(private, {"main": [first]})
        return self.repositories[name]

    def note(self, line: str) -> Fault | None:
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if re.search(fault.pattern, line):
                    if fault.skip:
                        fault.skip -= 1
                    elif fault.times:
                        fault.times -= 1
                        return fault
        return None

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        files = self.repositories[name].branches[branch][-1].files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def titles(self, name: str, branch: str = "main") -> list[str]:
        return [commit.title for commit in self.repositories[name].branches[branch]][1:]

    def sent(self) -> list[str]:
        """The objects of LFS that were uploaded, in order; the same one twice if it was sent twice."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("PUT /lfs/")]


@contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
