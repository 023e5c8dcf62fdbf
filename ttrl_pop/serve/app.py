"""What stands in front of vLLM's own application: names of minds in, vLLM's names out, and the vote in between.

vLLM is given this class by `--middleware`. It is an ASGI application around another one: a request whose model is one
of our names goes on with the adapter and the mind that the name stands for.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ttrl_pop.serve import polling
from ttrl_pop.serve.names import Served, is_vote, listed, writer

SETTINGS = "TTRL_POP_SERVE"
"""Environment variable: what is served, as JSON (`Served.row`)."""

MODELS, CHAT, TEXT = "/v1/models", "/v1/chat/completions", "/v1/completions"
WRITING = (CHAT, TEXT, "/v1/responses")
"""Paths whose requests can name a mind."""
READING = ("/tokenize", "/detokenize")
"""Paths for which all minds are alike."""

LARGEST = 2**26
"""Bytes of a request."""

Message = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Names:
    """The application that knows the names of a population."""

    def __init__(self, app: App, served: Served | None = None) -> None:
        """
        Args:
            app: vLLM's.
            served: None reads what the environment names.
        """
        self.app = app
        self.served = served or Served.of(json.loads(os.environ[SETTINGS]))
        self.rules = polling.rules_of(self.served)
        self._voting = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path, method = scope.get("path"), scope.get("method")
        lists = method == "GET" and path == MODELS
        asks = method == "POST" and (str(path).startswith("/v1/") or path in READING)
        if scope["type"] != "http" or not (lists or asks):
            await self.app(scope, receive, send)
            return
        # Nothing is told to whoever vLLM does not let in: its keys are looked at behind this.
        status, content, headers = await self._asked(_models(scope), b"", None)
        reply = _Reply(send, headers)
        if status != 200:
            await reply.send(status, content)
        elif lists:
            await reply.send(200, self._list(content))
        elif path in (*WRITING, *READING):
            await self._go_on(scope, receive, reply)
        else:
            await reply.refuse(404, f"minds are not served at {path}; ask {', '.join(WRITING)}")

    def _list(self, content: bytes) -> bytes:
        """Our names in the place of vLLM's."""
        (base, *_) = (row for row in json.loads(content)["data"] if not row.get("parent"))
        rows = [
            {**base, "id": name, "parent": None if name.endswith("/base") else self.served.base}
            for name in listed(self.served)
        ]
        return json.dumps({"object": "list", "data": rows}).encode()

    async def _go_on(self, scope: Message, receive: Receive, reply: "_Reply") -> None:
        """The request in vLLM's words, and the reply under the name that was asked for."""
        content = await _body(receive)
        if content is None:
            await reply.refuse(413, f"a request may have {LARGEST} bytes")
            return
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("model"), str | None):
            # vLLM says what is wrong with it.
            await self.app(scope, _replayed(content, receive), reply.channel)
            return
        name, path = body.get("model"), scope["path"]
        if is_vote(self.served, name):
            if path not in (CHAT, TEXT):
                await reply.refuse(400, f"{name} votes at {CHAT} and {TEXT}")
            else:
                await self._vote(scope, body, receive, reply)
            return
        who = writer(self.served, name)
        if who is None:
            await reply.refuse(404, f"the model {name!r} does not exist; there are {', '.join(listed(self.served))}")
            return
        body["model"] = who.model
        if who.mind is not None and path in WRITING:
            try:
                polling.check_mindful(body)
            except ValueError as error:
                await reply.refuse(400, str(error))
                return
            # A request may name another mind of the same population.
            body["vllm_xargs"] = {**who.mind, **(body.get("vllm_xargs") or {}), "population": who.mind["population"]}
        whole = json.dumps(body).encode()
        shown = _under(who.model, name or self.served.name, reply.channel)
        await self.app(_with_length(scope, whole), _replayed(whole, receive), shown)

    async def _vote(self, scope: Message, body: dict[str, Any], receive: Receive, reply: "_Reply") -> None:
        """All minds at once, and the majority's answer."""
        try:
            given = polling.ballots(self.served, body, scope["path"] == CHAT)
        except ValueError as error:
            await reply.refuse(400, str(error))
            return
        over = asyncio.Event()

        async def until_over() -> Message:
            await over.wait()
            return {"type": "http.disconnect"}

        # vLLM ends a request whose client has left, and not one whose task is cancelled.
        bodies = (json.dumps(each).encode() for each in given.bodies)
        written = asyncio.gather(*(self._asked(scope, each, until_over) for each in bodies))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((gone, written), return_when=asyncio.FIRST_COMPLETED)
            if not written.done():
                over.set()
                await asyncio.wait((written,))
                return
        finally:
            over.set()
            gone.cancel()
        for status, content, _ in written.result():
            if status != 200:
                await reply.send(status, content)
                return
        answers = [json.loads(content) for _, content, _ in written.result()]
        if polling.given_up(answers):
            await reply.refuse(503, "the engine has given up on a mind; ask again")
            return
        async with self._voting:
            # A grader takes its time, and is asked by one at a time.
            told = await asyncio.to_thread(polling.tally, self.rules, given, answers)
        await reply.send(200, json.dumps(polling.answer(self.served, given, told, answers)).encode())

    async def _asked(self, scope: Message, body: bytes, receive: Receive | None) -> tuple[int, bytes, Headers]:
        """Status, content and headers of vLLM's own reply to a request like that of `scope`.

        Args:
            receive: who asked; None for somebody who waits until the end.
        """
        status, headers = 500, Headers()
        parts: list[bytes] = []

        async def take(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], [*message.get("headers", ())]
            else:
                parts.append(message.get("body", b""))

        await self.app(_with_length(scope, body), _replayed(body, receive), take)
        return status, b"".join(parts), headers


class _Reply:
    """A channel for replies of our own, with those headers of vLLM's that are not about what is in them."""

    def __init__(self, channel: Send, headers: Headers) -> None:
        self.channel = channel
        self.headers = [(key, value) for key, value in headers if not key.lower().startswith(b"content-")]

    async def send(self, status: int, content: bytes) -> None:
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await self.channel({"type": "http.response.start", "status": status, "headers": [*self.headers, *own]})
        await self.channel({"type": "http.response.body", "body": content})

    async def refuse(self, status: int, text: str) -> None:
        """An error as the OpenAI protocol has it."""
        kind = {404: "NotFoundError", 503: "ServiceUnavailableError"}.get(status, "BadRequestError")
        error = {"message": text, "type": kind, "param": None, "code": status}
        await self.send(status, json.dumps({"error": error}).encode())


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None where it is too large."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive | None) -> Receive:
    """A channel that gives `body` and then what `receive` gives."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if waiting:
            return waiting.pop()
        if receive is None:
            await asyncio.Event().wait()
        assert receive is not None
        return await receive()

    return replay


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _models(scope: Message) -> Message:
    """The scope of a request for the models by the same client."""
    return {**scope, "method": "GET", "path": MODELS, "raw_path": MODELS.encode(), "query_string": b""}


def _with_length(scope: Message, body: bytes) -> Message:
    """The scope of a request with another body, answered as it is."""
    kept = [(key, value) for key, value in scope["headers"] if key not in (b"content-length", b"accept-encoding")]
    length = [(b"content-length", str(len(body)).encode())] if scope["method"] == "POST" else []
    return {**scope, "headers": [*kept, *length]}


def _under(theirs: str, ours: str, send: Send) -> Send:
    """A channel for replies in which the model is called `ours`."""
    found, wanted = (f'"model":{json.dumps(name)}'.encode() for name in (theirs, ours))
    start: list[Message] = []

    async def renamed(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)
            return
        body = message.get("body", b"").replace(found, wanted)
        if start:
            # Known only now, where all of it comes at once; a stream tells no length.
            head = start.pop()
            headers = [(key, value) for key, value in head.get("headers", ()) if key.lower() != b"content-length"]
            if not message.get("more_body"):
                headers.append((b"content-length", str(len(body)).encode()))
            await send({**head, "headers": headers})
        await send({**message, "body": body})

    return renamed
