"""One server of vLLM, asked over HTTP: what it runs, and one completion at a time."""

import http.client
import json
import os
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ttrl_pop.errors import EngineError, TtrlPopError
from ttrl_pop.text import shown

KEY = "VLLM_API_KEY"
"""Environment variable with the key that `vllm serve --api-key` asks for."""

LARGEST = 2**28
"""Bytes of an answer that are read."""

CONNECTING = 10.0
"""Seconds that a server has to take a connection; while one is made, nothing can be given up."""

NO_ADAPTER = (
    "it takes no adapter of this run; is it vLLM of the run's model, started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, "
    "--enable-lora, --max-lora-rank of learn.lora.rank or more, and --additional-config with the folder of policies, "
    "whose files it may read (docs/VLLM.md)?"
)


class ServerDown(TtrlPopError):
    """A server that does not answer, or not as one that works; its requests go elsewhere."""


class Client:
    """The address of a server, and the connections to it that are open."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self.timeout = timeout
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self.given_up = False
        """Nothing is waited for any more."""

    def models(self, timeout: float) -> list[dict[str, Any]]:
        """What the server runs: rows with `id`, and `parent` where one is an adapter.

        Raises:
            ServerDown: nobody answers.
            EngineError: it refuses, or its answer is none of vLLM's.
        """
        rows = self._ask("GET", "/v1/models", None, timeout).get("data")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
            raise EngineError(f"{self.url} does not answer as vLLM does: /v1/models has no list of models")
        return rows

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request for one completion.

        Raises:
            ServerDown: the server does not answer, or stopped before the completion had ended.
            EngineError: it refuses.
        """
        answer = self._ask("POST", "/v1/completions", body, self.timeout)
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            # What is no choice at all is for others to say.
            if reason not in ("stop", "length", None):
                raise ServerDown(f"{self.url} ended a completion by {shown(str(reason))!r}")
        return answer

    def give_up(self) -> None:
        """Drop the requests that are under way; the server then stops to write them."""
        with self._lock:
            self.given_up = True
            for connection in self._open:
                with suppress(OSError):
                    connection.close() if connection.sock is None else connection.sock.shutdown(2)

    def begin(self) -> None:
        """Take requests again after `give_up`."""
        with self._lock:
            self.given_up = False

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname is not None
        connection = kind(parts.hostname, parts.port, timeout=min(timeout, CONNECTING))
        with self._lock:
            if self.given_up:
                raise ServerDown(f"{self.url}: no longer asked")
            self._open.add(connection)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.connect()
            with self._lock:
                if self.given_up:
                    raise ServerDown(f"{self.url}: no longer asked")
                connection.sock.settimeout(timeout)
            connection.request(method, parts.path + path, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as answer:
                content = answer.read(LARGEST)
                if answer.length:
                    raise ServerDown(f"{self.url} broke off in the middle of an answer")
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise ServerDown(f"{self.url} does not answer ({str(error) or type(error).__name__})") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if answer.status >= http.client.INTERNAL_SERVER_ERROR:
            raise ServerDown(f"{self.url} failed: {_said(content) or answer.reason}")
        if answer.status != http.client.OK:
            said = _said(content) or answer.reason
            if "policy-" in said and (answer.status == http.client.NOT_FOUND or "could not be loaded" in said):
                said = f"{said.rstrip('.')}: {NO_ADAPTER}"
            raise EngineError(f"{self.url} refuses {path} ({answer.status}): {said}")
        try:
            found = json.loads(content)
        except ValueError as error:
            raise EngineError(f"{self.url} does not answer as vLLM does: {path} is no JSON") from error
        if not isinstance(found, dict):
            raise EngineError(f"{self.url} does not answer as vLLM does: {path} is no JSON object")
        return found


def _said(content: bytes) -> str:
    """What a server says of an error, in a line."""
    try:
        row = json.loads(content)
        error = row.get("error", row) if isinstance(row, dict) else row
        said = error.get("message", "") if isinstance(error, dict) else error
    except ValueError:
        said = content.decode("utf-8", "replace")
    return shown(str(said).strip(), limit=300)
