"""A headless Chromium that a test drives over its DevTools protocol, with no driver between them."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

PATIENCE = 120  # seconds after which a test gives up on what should have happened long ago
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page. `errors` are what its scripts threw and its console reported."""

    def __init__(self, program: str, directory: Path):
        self.directory, self.number, self.errors = directory, 0, []
        flags = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={directory}", "--no-first-run", "--disable-gpu"]
        flags += ["--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        flags += ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium's own does not work for root
        self.process = subprocess.Popen([program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = self.patiently(lambda: (directory / "DevToolsActivePort").read_text().split()[0], FileNotFoundError, IndexError)
            pages = self.patiently(lambda: [page for page in self.pages(port) if page["type"] == "page"], OSError)
            self.socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None)
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def pages(port: str) -> list[dict]:
        return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list"))

    def patiently(self, look, *expected: type[Exception]):
        """What `look` returns as soon as that is something."""
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            try:
                if found := look():
                    return found
            except expected:
                pass
            assert self.process.poll() is None, "the browser has ended"
            time.sleep(0.02)
        raise AssertionError(f"nothing after {PATIENCE} s")

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            elif message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']['message']}"
                return message["result"]

    def evaluate(self, script: str):
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]["exception"]["description"]
        return found["result"].get("value")

    def wait(self, script: str):
        """The value of an expression as soon as it is true."""
        try:
            return self.patiently(lambda: self.evaluate(script))
        except AssertionError as error:
            raise AssertionError(f"{script}: {error}; the page says: {self.evaluate('document.body.innerText')[:500]}") from None

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def reload(self) -> None:
        self.evaluate("window.before = true")
        self.call("Page.reload")
        self.wait("!window.before && document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def write(self, text: str) -> None:
        """Into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 * shift}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """The window's size, and whether the user likes it light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def browser(tmp_path):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: apt install chromium")
    browser = Browser(program, tmp_path / "browser")
    yield browser
    browser.close()
