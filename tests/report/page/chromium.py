"""Headless Chromium, spoken to over its debugging pipe: what a page asks for, logs and shows."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PATIENCE = 60.0
"""Seconds after which a browser or a page hangs."""


class Page:
    """A tab of a browser, and what has come of it."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, os.fdopen(events, "rb", buffering=0)
        self._held = b""
        self._count = 0
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        """Addresses that were asked for."""
        self.said: list[str] = []
        """Warnings and errors of the console, what the policy has blocked among them."""

    def start(self) -> None:
        """Open the tab, and listen."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What the browser answers to a command."""
        self._count += 1
        request = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(request).encode() + b"\0")
        for message in self._messages():
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self._note(message)
        raise AssertionError("the browser has gone")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; one that is promised is waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Go there, and wait until it is drawn."""
        self.call("Page.navigate", url=address)
        self.until("document.documentElement?.dataset.drawn === 'true'")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"not within {PATIENCE} s: {script}; console: {self.said}"
            time.sleep(0.05)

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._commands)
        self._events.close()

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self._held:
                part = self._events.read(2**20)
                if not part:
                    return
                self._held += part
            message, self._held = self._held.split(b"\0", 1)
            yield json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
            case "Runtime.exceptionThrown":
                self.said.append(str(given["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if given["type"] in ("warning", "error", "assert"):
                self.said.append(str(given["args"]))
            case "Log.entryAdded":
                self.said.append(given["entry"]["text"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A new browser whose files are in `folder`."""
    assert PROGRAM
    command_out, command_in = os.pipe()
    event_out, event_in = os.pipe()

    def pipes() -> None:
        # The numbers at which the browser expects them, which may be taken.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_out, event_in)]
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    process = subprocess.Popen(
        [
            *(PROGRAM, "--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
            *("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
        ],
        close_fds=False,
        preexec_fn=pipes,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_out)
    os.close(event_in)
    page = Page(command_in, event_out)
    try:
        page.start()
        yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        page.close()
