"""`ttrl-pop view`: the page of `ttrl-pop report` for runs that go on, served to a browser on this machine.

The server listens on 127.0.0.1 alone and answers nobody who calls it by another name: a page from elsewhere that has
its own name point here (DNS rebinding) gets no answer. It reads runs and changes nothing.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTP_PORT
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from ttrl_pop.cli.recorded import Recorder
from ttrl_pop.cli.report import DEFAULTS, told_apart
from ttrl_pop.errors import UsageError
from ttrl_pop.report.page.data import NOTICE, SHOWN, embedded, page_data
from ttrl_pop.report.page.html import page, policy
from ttrl_pop.store.directory import RunDirectory, find
from ttrl_pop.text import safe

LOOK = 1.0
"""Seconds between two looks at the files of a run."""

SIGN_OF_LIFE = 15.0
"""Seconds without news after which a browser is told that the server is there, and the server that it is."""


def view(paths: Sequence[Path], port: int, trust: bool) -> None:
    """Serve the page of these runs until Ctrl-C.

    Args:
        paths: run directories, paths in them, or folders that hold run directories.
        port: 0 takes a free one.

    Raises:
        UsageError: there is no run, one cannot be told, or the port is taken.
    """
    shelf = Shelf(paths, trust)
    # What is wrong is said here and now, not in a browser later.
    shelf.content(shelf.chosen(()))
    policy(live=True)
    try:
        server = serve(shelf, port)
    except OSError as error:
        raise UsageError(f"--port {port}: cannot be listened on ({error.strerror}); leave it out") from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


class Shelf:
    """Runs to choose from, read as they grow. Threads of the server share one."""

    def __init__(self, paths: Sequence[Path], trust: bool = False) -> None:
        for path in paths:
            _runs_at(path)
        self._paths = paths
        self._trust = trust
        self._recorders: dict[str, Recorder] = {}
        # A recorder remembers what it has read, and a grader may work in one process.
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Every run that is still there by its path, the one that changed last first."""
        return sorted(self._found(), key=lambda name: -_changed(Path(name)))

    def chosen(self, asked: Sequence[str]) -> list[str]:
        """The runs that were asked for; else those that were named one by one, else the newest one."""
        names = self.names()
        if known := [name for name in dict.fromkeys(asked) if name in names]:
            return known
        named = [name for name, alone in self._found().items() if alone]
        return named or names[:1]

    def stamp(self, names: Sequence[str]) -> tuple[object, ...]:
        """What changes whenever one of these runs has something new to tell, or another run has begun."""
        with self._lock:
            return (*(self._recorders[name].stamp() for name in names if name in self._recorders), *self._found())

    def content(self, names: Sequence[str]) -> dict[str, Any]:
        """Data of the page with these runs.

        Raises:
            UsageError: a run cannot be told, or none is left.
        """
        if not names:
            raise UsageError("no run is left where there were some")
        with self._lock:
            for name in names:
                if name not in self._recorders:
                    self._recorders[name] = Recorder(Path(name), self._trust)
            records = told_apart([self._recorders[name] for name in names])
        return {**page_data(records, DEFAULTS), "choice": list(self._choice(names))}

    def told(self, names: Sequence[str]) -> dict[str, Any]:
        """`content`, or a page that says what is wrong with a run."""
        try:
            return self.content(names)
        except UsageError as error:
            choice = list(self._choice(names))
            return {**page_data([], DEFAULTS), "choice": choice, "trouble": safe(str(error), NOTICE)}

    def _choice(self, shown: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Runs with a link that adds them to what is shown, or takes them away."""
        names = self.names()
        if len(names) < 2:
            return
        for name in names:
            others = [other for other in shown if other != name]
            then = others if name in shown else [*shown, name]
            query = urlencode([("run", other) for other in then or [name]])
            yield {"name": safe(Path(name).name, SHOWN), "href": f"?{query}", "shown": name in shown}

    def _found(self) -> dict[str, bool]:
        """Path of each run → whether it was named itself, and not the folder that it is in."""
        found: dict[str, bool] = {}
        for path in self._paths:
            # One that was there at the start may be gone.
            with suppress(UsageError):
                for name, alone in _runs_at(path).items():
                    found[name] = alone or found.get(name, False)
        return found


def _runs_at(path: Path) -> dict[str, bool]:
    """Path of each run that `path` stands for → whether it was named itself, and not the folder that it is in.

    Raises:
        UsageError: it is neither a run nor a folder with runs.
    """
    if os.path.lexists(RunDirectory(path).identity):
        return {str(path): True}
    if inside := [folder for folder in _folders(path) if os.path.lexists(RunDirectory(folder).identity)]:
        return {str(folder): False for folder in inside}
    return {str(find(path)[0].path): True}


def serve(shelf: Shelf, port: int) -> ThreadingHTTPServer:
    """A server of the shelf's page that listens, and answers once it is asked to serve.

    Raises:
        OSError: the port cannot be had.
    """
    server = _Server(("127.0.0.1", port), _Handler)
    # Browsers leave out the port that is HTTP's own.
    end = f":{server.server_port}" if server.server_port != HTTP_PORT else ""
    hosts = tuple(f"{name}{end}" for name in ("127.0.0.1", "localhost"))
    server.RequestHandlerClass = type("Handler", (_Handler,), {"shelf": shelf, "hosts": hosts})
    return server


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that leaves in the middle of an answer is no error.
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers `/` with the page and `/events` with newer data, as server-sent events."""

    shelf: Shelf
    hosts: Sequence[str]
    """Names, with the port, by which the server may be called."""
    server_version, sys_version = "ttrl-pop", ""
    timeout = 60

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "this server is known as 127.0.0.1 alone")
            return
        address = urlsplit(self.path)
        names = self.shelf.chosen(parse_qs(address.query).get("run", ()))
        if address.path == "/":
            self._page(names)
        elif address.path == "/events":
            self._events(names)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to who started the server."""

    def _page(self, names: Sequence[str]) -> None:
        content = page(self.shelf.told(names), live=True).encode()
        self._head("text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        # What a page cannot say of itself.
        self.send_header("Content-Security-Policy", f"{policy(live=True)}; frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(content)

    def _events(self, names: Sequence[str]) -> None:
        self._head("text/event-stream")
        self.end_headers()
        told: object = None
        spoke = time.monotonic()
        while True:
            stamp = self.shelf.stamp(names)
            if stamp != told:
                content = embedded(self.shelf.told(names))
                told = stamp
                self.wfile.write(f"event: runs\ndata: {content}\n\n".encode())
                spoke = time.monotonic()
            elif time.monotonic() - spoke > SIGN_OF_LIFE:
                self.wfile.write(b":\n\n")
                spoke = time.monotonic()
            time.sleep(LOOK)

    def _head(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        for name, value in (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(folder for folder in path.iterdir() if folder.is_dir())
    except OSError:
        return []


def _changed(path: Path) -> float:
    """When a run last had news."""
    times = [0.0]
    for file in (RunDirectory(path).metrics, RunDirectory(path).answers, RunDirectory(path).identity):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times)
