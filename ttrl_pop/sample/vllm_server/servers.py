"""Servers that write for one policy: the least loaded is asked, and what a dead one leaves is asked elsewhere."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from ttrl_pop.errors import EngineError, UsageError
from ttrl_pop.sample.vllm_server.client import Client, ServerDown

PATIENCE = 10.0
"""Seconds that a server has to say what it runs; one that was dead has less, as it is asked at every step."""

SOON = 2.0

WAKE = 0.5
"""Seconds after which whoever waits for an answer looks up, so that an interrupt is heard."""


@dataclass
class Server:
    """A server, and how much it has to do."""

    client: Client
    model: str
    """Name of the model without an adapter."""
    longest: int
    """Tokens that a prompt and its completion may come to."""
    alive: bool = True
    under_way: int = 0


@dataclass
class Servers:
    """The servers of a run."""

    servers: list[Server]
    lost: list[str] = field(default_factory=list)
    """What was found of servers that died, or that are back and were not taken."""
    untold: list[str] = field(default_factory=list)
    """What the user has yet to be told of them."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def reached(cls, urls: Sequence[str], timeout: float) -> "Servers":
        """Servers that all answer.

        Raises:
            UsageError: one does not, or is none of vLLM's.
        """
        found = []
        for url in urls:
            try:
                found.append(_server(Client(url, timeout), PATIENCE))
            except (ServerDown, EngineError) as error:
                raise UsageError(f"backend vllm-server: {error}; start it first (docs/VLLM.md)") from error
        return cls(found)

    @property
    def longest(self) -> int:
        """Tokens that a prompt and its completion may come to, on every server."""
        return min(server.longest for server in self.servers)

    def alone(self, server: Server) -> "Servers":
        """One of them, for a test of it."""
        return Servers([server], self.lost, self.untold)

    def revive(self, proof: Callable[[Server], None]) -> None:
        """Take servers back that have died and answer again, each once `proof` has found nothing wrong with it."""
        for server in self.servers:
            if server.alive:
                continue
            try:
                now = _server(server.client, SOON)
            except (ServerDown, EngineError):
                continue
            server.model, server.longest = now.model, now.longest
            server.alive = True
            try:
                proof(server)
            except EngineError as error:
                server.alive = False
                self._note(f"{server.client.url} is back, but not taken ({error})", "")

    def ask(
        self, bodies: Sequence[Callable[[Server], dict[str, Any]]], rows: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, answer) as they come, each index once. Closed early, what is under way is given up.

        Args:
            bodies: makes the request for the server that gets it.
            rows: requests that one server has at a time.

        Raises:
            EngineError: a server refuses a request, or none is left.
        """
        for server in self.servers:
            server.client.begin()
        pool = ThreadPoolExecutor(max_workers=max(1, min(len(bodies), rows * len(self.servers))))
        waiting: dict[Future[dict[str, Any]], int] = {pool.submit(self._one, body): i for i, body in enumerate(bodies)}
        try:
            while waiting:
                done = wait(waiting, timeout=WAKE, return_when=FIRST_COMPLETED).done
                self._tell()
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if waiting:
                for server in self.servers:
                    server.client.give_up()
            pool.shutdown(wait=True)

    def _one(self, body: Callable[[Server], dict[str, Any]]) -> dict[str, Any]:
        """The answer of whichever server is least loaded; of another one where that dies over it."""
        while True:
            with self._lock:
                living = [server for server in self.servers if server.alive]
                if not living:
                    raise EngineError(f"no server is left: {'; '.join(self.lost)}. Start them and go on with --resume")
                server = min(living, key=lambda each: each.under_way)
                server.under_way += 1
            try:
                return server.client.complete(body(server))
            except ServerDown as error:
                if server.client.given_up:
                    raise
                with self._lock:
                    if server.alive:
                        server.alive = False
                        self._note(str(error), "; its requests go to the others")
            finally:
                with self._lock:
                    server.under_way -= 1

    def _note(self, text: str, what: str) -> None:
        self.lost.append(text)
        self.untold.append(text + what)

    def _tell(self) -> None:
        """Let the user know, from the thread that he looks at; where nobody is left, an error says it."""
        while self.untold and any(server.alive for server in self.servers):
            warnings.warn(self.untold.pop(0), stacklevel=2)


def _server(client: Client, patience: float) -> Server:
    """What a server that answers runs."""
    rows = client.models(patience)
    base = next((row for row in rows if not row.get("parent")), None)
    longest = None if base is None else base.get("max_model_len")
    if base is None or not isinstance(longest, int):
        raise EngineError(f"{client.url} does not answer as vLLM does: no model with its max_model_len")
    return Server(client, str(base["id"]), longest)
