"""A page in headless Chromium, driven through its debugging pipe: what it says on the console, what it measures."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MESSAGES = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening"}


class Page:
    """One tab; `messages` holds what it put on the console, or the log, and `requests` what it asked for, so far."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write_fd, self._read_fd, self._rest = write_fd, read_fd, b""
        self._ids, self._session = itertools.count(1), ""
        self.messages: list[dict[str, Any]] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        number = next(self._ids)
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._write_fd, json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0"
        )
        while True:
            message = self._next()
            if message.get("method") in MESSAGES:
                self.messages.append(message)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, script: str) -> Any:
        """What `script` comes to in the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, file: Path, width: int, height: int = 900) -> int:
        """Shows `file` at a width in CSS pixels; returns when it says that it is ready, with the milliseconds that took."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Page.navigate", url=file.resolve().as_uri())
        wait = """new Promise(done => { const look = () => document.documentElement.dataset.ready ?
            done(document.documentElement.dataset.ready) : setTimeout(look, 20); look(); })"""
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") == "about:blank":
            pass
        return int(self.evaluate(wait))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            some = os.read(self._read_fd, 1 << 20)
            assert some, "the browser has ended"
            self._rest += some
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Generator[Page]:
    """A tab of a new headless Chromium with a profile of its own; it has ended when this is over."""
    assert CHROMIUM is not None
    to_child, from_us = os.pipe()
    to_us, from_child = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        flags += ["--no-first-run", "--disable-dev-shm-usage"]
        with subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_child} 4>&{from_child}', "browser", CHROMIUM, *flags],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            os.close(to_child)
            os.close(from_child)
            try:
                yield Page(from_us, to_us)
            finally:
                os.close(from_us)  # it ends when nobody can tell it anything more
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                os.close(to_us)
