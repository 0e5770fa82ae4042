"""A stage directory on the Hugging Face Hub, and back: what is sent and when, and what is said when it cannot be.

The Trainer's own pushing is switched off (`stage.start`): it sends a checkpoint before that is sealed, loses the error of a push
that failed in the background (`PushInProgress` of transformers/utils/hub.py), and raises where the Hub is down.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from groundup import record
from groundup.checkpoint import MANIFEST, checkpoints, damage, step_of
from groundup.errors import InputError, RunError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import _http, parse_ratelimit_headers

httpx = getattr(_http, "httpx2", None) or _http.httpx  # huggingface_hub 1 has the latter, and both may be installed
SILENCE = 120.0  # seconds without a byte after which the Hub is taken to be gone; the client's own default is to wait for ever
WAITS = (1, 4, 16)  # seconds before each further try, where the Hub names none
LONGEST_WAIT = 600.0  # seconds that are waited when it does
# Of a directory with a model, what the model is: not `training_args.bin` (a pickle), nor what only a resumption needs.
MODEL = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md")
# What a model that was pushed there before may have left, and would be read with this one: weights, an adapter, figures.
STALE = ("model*.safetensors*", "adapter_*", record.EVALUATION, record.GATE)
LATEST = "last-checkpoint"  # as the Trainer calls it with `hub_strategy: checkpoint`
T = TypeVar("T")


class Repository:
    """A model repository of the Hub.

    Args:
        name: `owner/name`, or a name of the token's owner.
        private: whether it is to be when it is made; one that is there stays as it is.
        revision: branch that is written to and read, the main one unless given.
    """

    def __init__(self, name: str, token: str | None = None, private: bool = True, revision: str | None = None):
        self.name, self.private, self.revision = name, private, revision
        self.api = HfApi(token=token, library_name="groundup")
        set_client_factory(_patient_client)

    def ask(self, call: Callable[[], T]) -> T:
        """What `call` returns, tried again after a while where the Hub is in trouble (429, 5xx, no answer).

        Raises:
            InputError: the user can mend it: no token, one that may not, no such repository, `HF_HUB_OFFLINE`.
            RunError: the Hub is in trouble.
        """
        for wait in (*WAITS, None):
            try:
                return call()
            except Exception as error:  # whatever it is, callers know the two that it is told as
                cause = _cause(error)
                if wait is None or not _passes(cause):
                    raise self.explain(cause, str(error)) from error
                time.sleep(_asked_to_wait(cause) or wait)
        raise AssertionError

    def explain(self, error: BaseException, said: str) -> InputError | RunError:
        """The error in the user's words, with what to do; where there are none, what the client `said`."""
        login = "`hf auth login`, or set HF_TOKEN to a token that may write (huggingface.co/settings/tokens)"
        if isinstance(error, OfflineModeIsEnabled):
            return InputError("the Hub is not asked: HF_HUB_OFFLINE is set", self.name, "unset it")
        if isinstance(error, LocalTokenNotFoundError):
            return InputError("the Hub wants to know who pushes, and there is no token", self.name, login)
        if isinstance(error, HFValidationError):
            return InputError(f"no name for a repository: {error}", self.name, "write `owner/name`")
        if isinstance(error, HfHubHTTPError):
            status, why = error.response.status_code, "".join(f": {line}" for line in (error.server_message or "").splitlines()[:1])
            if status == 401:
                return InputError("the Hub does not know the token (401)", self.name, login)
            if status == 403:
                fix = "give the token the right to write there, or name a repository of your own"
                return InputError(f"the token may not write there (403){why}", self.name, fix)
            if status == 404:
                return InputError("there is no such repository or revision, or the token may not see it (404)", self.name, login)
            if status == 429:
                return RunError("the Hub takes no more requests for now (429)", self.name, "try again in some minutes")
            if status >= 500:
                return RunError(f"the Hub is in trouble ({status})", self.name, "try again later (status.huggingface.co)")
        fix = "try again later, or look at the network, a proxy, HF_ENDPOINT"
        if isinstance(error, httpx.TimeoutException):
            return RunError(f"the Hub did not answer for {SILENCE:g} s", self.name, fix)
        if isinstance(error, httpx.TransportError):
            return RunError(f"the Hub cannot be reached: {error}", self.name, fix)
        if isinstance(error, json.JSONDecodeError):
            return RunError("the Hub answers what is no JSON", self.name, fix)
        return RunError(f"the Hub: {' '.join(said.split())[:300] or type(error).__name__}", self.name, fix)

    # -- there

    def open(self) -> "Repository":
        """Make it where it is not there, and see that the token may write to it: nothing that is sent later is in vain.

        Raises:
            InputError, RunError: as `ask`.
        """
        who = self.ask(lambda: self.api.whoami(cache=True))
        self.name = self.name if "/" in self.name else f"{who['name']}/{self.name}"
        self.ask(lambda: self.api.create_repo(self.name, private=self.private, exist_ok=True))
        self.ask(lambda: self.api.auth_check(self.name, write=True))
        if self.revision:
            self.ask(lambda: self.api.create_branch(self.name, branch=self.revision, exist_ok=True))
        return self

    def send(
        self, files: dict[str, Path | bytes], message: str, revision: str | None = None, instead_of: Iterable[str] = ()
    ) -> str:
        """Commit the files under these names, together. What the Hub has is not sent again, and what is all there is no new commit.

        Args:
            instead_of: patterns; other files of such names are deleted.

        Returns:
            The commit's hash.

        Raises:
            InputError, RunError: as `ask`.
        """
        revision = revision or self.revision

        def commit() -> str:  # all of it again at each try: an answer may be lost after the commit was made
            there = self.api.list_repo_files(self.name, revision=revision) if instead_of else []
            gone = [
                n for n in there if n not in files and any(fnmatch(n, pattern) for pattern in instead_of) and not n.startswith(".")
            ]
            operations: list = [CommitOperationDelete(path_in_repo=name) for name in gone]
            operations += [CommitOperationAdd(n, f if isinstance(f, bytes) else str(f)) for n, f in files.items()]
            return self.api.create_commit(self.name, operations, commit_message=message, revision=revision).oid

        return self.ask(commit)

    def push(self, directory: str | Path, revisions: bool = False, report: bool = True) -> Iterator[str]:
        """Send a finished stage directory: model, card, record and evaluation; tells what it did, by lines.

        Args:
            revisions: each checkpoint too, as a branch `step-N` of its own.
            report: the run's `report.html` too, if there is one beside the directory.
        """
        directory = Path(directory)
        files = model_files(directory)
        page = directory.resolve().parent / "report.html"
        if report and page.is_file():
            files[page.name] = page
        before = self.ask(lambda: self.api.model_info(self.name, revision=self.revision))
        commit = self.send(files, "Model, card, record and evaluation", instead_of=STALE)
        news = "nothing new" if commit == before.sha else f"{len(files)} files"
        yield f"{news} -> {self.api.endpoint}/{self.name} ({'private' if before.private else 'public'}, commit {commit[:12]})"
        for step, folder in checkpoints(directory) if revisions else []:
            if wrong := damage(folder):
                yield f"{folder.name} is left out: {wrong}"
                continue
            branch = f"step-{step}"
            self.ask(lambda branch=branch: self.api.create_branch(self.name, branch=branch, exist_ok=True))
            commit = self.send(model_files(folder), f"Weights at step {step}", revision=branch, instead_of=["*"])
            yield f"{folder.name} -> revision {branch} (commit {commit[:12]})"

    # -- and back

    def fetch(self, directory: Path) -> str | None:
        """Bring what the repository has of a run into a directory that has none: a finished stage, or its newest whole checkpoint.

        What was cut off goes on when it is called again.

        Returns:
            What is there now; None where the repository knows of no run.

        Raises:
            InputError: what is there is damaged. InputError, RunError: as `ask`.
        """
        info = self.ask(lambda: self.api.model_info(self.name, revision=self.revision))
        names = [sibling.rfilename for sibling in info.siblings or []]
        if record.FILE not in names:
            return None
        aside = directory / ".hub"

        def bring(*patterns: str) -> Path:
            which = {"revision": info.sha, "allow_patterns": list(patterns)}
            return Path(self.ask(lambda: self.api.snapshot_download(self.name, local_dir=aside, **which)))

        found = None
        if (record.read(bring(record.FILE)) or {}).get("status") == "finished":
            bring(*(found := [name for name in names if "/" not in name and not name.startswith(".")]))
            if wrong := [line for line in record.verify(aside) if line.startswith(str(aside))]:
                raise InputError(f"what the Hub has is not what was pushed: {'; '.join(wrong)}", self.name, "push it again")
            what = "the finished model"
        else:
            folders = {name.partition("/")[0] for name in names if name.endswith(f"/{MANIFEST}")}
            steps = {name: -1 if name == LATEST else step_of(name) for name in folders}
            damaged = []
            for folder in sorted((name for name in steps if steps[name] is not None), key=steps.get, reverse=True):
                if wrong := damage(bring(f"{folder}/*") / folder):
                    damaged.append(f"{folder}: {wrong}")
                    continue
                step = json.loads((aside / folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
                os.replace(aside / folder, directory / f"checkpoint-{step}")
                what, found = f"checkpoint-{step}", [record.FILE]
                break
            if damaged and not found:
                raise InputError(
                    f"no checkpoint on the Hub is whole: {'; '.join(damaged)}", self.name, "give another `hub_model_id`"
                )
        for name in sorted(found or [], key=lambda name: name == record.FILE):  # last: with it the directory has a run
            os.replace(aside / name, directory / name)
        shutil.rmtree(aside)
        return f"{what} is from {self.name} on the Hub, commit {info.sha[:12]}" if found else None


def model_files(directory: Path) -> dict[str, Path | bytes]:
    """Name and path of what makes the model in a stage directory or a checkpoint."""
    found = (path for path in sorted(directory.iterdir()) if path.is_file() and path.name != MANIFEST)
    return {path.name: path for path in found if any(path.match(pattern) for pattern in MODEL) and not path.name.startswith(".")}


class Pushing:
    """What a run sends: checkpoints from a thread of its own, so that no step waits for them, and the model at the end.

    `strategy` is the Trainer's `hub_strategy`: `end`; `every_save`, the weights alone; `checkpoint` and `all_checkpoints`, whole
    checkpoints, from which the run goes on on another machine. Failures are said, and no run ends because of one.
    """

    def __init__(self, repository: Repository, strategy: str, always: bool, say: Callable[[str], None]):
        self.repository, self.strategy, self.always, self.say = repository, strategy, always, say
        self.futures: dict[Path, Future[None]] = {}

    @property
    def resumes(self) -> bool:
        return self.strategy in ("checkpoint", "all_checkpoints")

    @property
    def sending(self) -> list[Path]:
        """The checkpoints that are being read, and must stay."""
        return [folder for folder, future in self.futures.items() if not future.done()]

    def checkpoint(self, folder: Path, last: bool = False) -> None:
        """Begin to send a sealed checkpoint; while one is under way the next is left out, unless `hub_always_push`.

        The `last` never is, and is waited for: the process ends after it.
        """
        if self.strategy == "end" or self.sending and not self.always and not last:
            return
        files: dict[str, Path | bytes] = {record.FILE: (folder.parent / record.FILE).read_bytes()}  # as it is now
        name = LATEST if self.strategy == "checkpoint" else folder.name
        if self.resumes:
            files |= {f"{name}/{path.relative_to(folder)}": path for path in sorted(folder.rglob("*")) if path.is_file()}
        else:
            files |= model_files(folder)
        step = step_of(folder)

        def send() -> None:
            try:
                self.repository.send(files, f"Training in progress, step {step}", instead_of=[f"{name}/*"] if self.resumes else [])
            except (InputError, RunError) as error:
                self.say(f"{folder.name} was not pushed: {error.what}; the run goes on")

        self.futures[folder] = self.repository.api.run_as_future(send)
        if last:
            self.wait()

    def wait(self) -> None:
        for future in self.futures.values():
            future.result()

    def finish(self, directory: Path) -> bool:
        """Send the finished stage; whether that could be done. A report that is there is older than it."""
        self.wait()
        try:
            for line in self.repository.open().push(directory, report=False):
                self.say(line)
            return True
        except (InputError, RunError) as error:
            self.say(f"not pushed: {error.what}; run `python recipes/push.py {directory} {self.repository.name}`")
            return False


def _patient_client() -> httpx.Client:
    client = _http.default_client_factory()  # not public, and no other way keeps its hooks: offline mode, request ids
    client.timeout = SILENCE
    return client


def _cause(error: BaseException) -> BaseException:
    """What the Hub's client wraps into a RuntimeError for a file, or a LocalEntryNotFoundError for a download."""
    while not isinstance(error, (HfHubHTTPError, httpx.HTTPError)) and error.__cause__:
        error = error.__cause__
    return error


def _passes(error: BaseException) -> bool:
    """Whether it may be otherwise in a while."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 409, 412, 429) or error.response.status_code >= 500
    if isinstance(error, httpx.TimeoutException):  # waited for long enough
        return False
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError))


def _asked_to_wait(error: BaseException) -> float | None:
    """Seconds that the Hub asks for, as `Retry-After` or in its rate limit's headers."""
    if not isinstance(error, HfHubHTTPError):
        return None
    asked, limit = error.response.headers.get("Retry-After", ""), parse_ratelimit_headers(error.response.headers)
    seconds = int(asked) if asked.isdigit() else limit.reset_in_seconds if limit and not limit.remaining else None
    return None if seconds is None else min(seconds, LONGEST_WAIT)
