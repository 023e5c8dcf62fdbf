"""Names of minds, and their vote, in front of an application that stands for vLLM's."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ttrl_pop import randomness
from ttrl_pop.config import Config
from ttrl_pop.population.base import spawned
from ttrl_pop.serve import app as serving
from ttrl_pop.serve.app import CHAT, TEXT, Names
from ttrl_pop.serve.names import Served, listed, writer

POLICY = "policy-" + "0" * 32
CONFIG = Config.model_validate(
    {
        "model": "m",
        "seed": 3,
        "population": {"minds": 4, "samples_per_mind": 2},
        "sampling": {"max_new_tokens": 9, "temperature": 0.8},
        "vote": {"grader": "exact", "extract": "last-number"},
    }
)
SERVED = Served("sums", "sums/base", POLICY, adapted=True, noisy=True, config=CONFIG)
Answer = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]


class Inner:
    """vLLM's application: keeps what it was asked, and answers by a function of it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = 0
        self.left = 0
        """Requests that had been cancelled soon after the reply, before the loop ended."""
        self.key = b"Bearer k"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if dict(scope["headers"])[b"authorization"] != self.key:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
            return
        # Like vLLM: what is done for a request ends when its client leaves, not when whoever waits is cancelled.
        handler = asyncio.ensure_future(self._handle(scope, receive, send))
        await asyncio.wait((handler,))
        if not handler.cancelled():
            handler.result()

    async def _handle(self, scope: Any, receive: Any, send: Any) -> None:
        content = b""
        if scope["method"] == "POST":
            message = await receive()
            content = message["body"]
            assert dict(scope["headers"])[b"content-length"] == str(len(content)).encode()
        body = json.loads(content or b"{}")
        if scope["method"] == "POST":
            self.asked.append((scope["path"], body))
        if body.get("prompt") == "wait":
            assert (await receive())["type"] == "http.disconnect"
            self.cancelled += 1
        status, row = self.answer(scope["path"], body)
        whole = json.dumps(row, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(whole)).encode())]
        headers.append((b"access-control-allow-origin", b"*"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        # As a stream has it: in parts.
        parts = (body.get("stream") and [whole[:20], whole[20:]]) or [whole]
        for number, part in enumerate(parts, start=1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})


def echo(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What a text model says: a number that depends on the mind."""
    if path == "/v1/models":
        cards = [{"id": "sums/base", "parent": None, "max_model_len": 64}, {"id": POLICY, "parent": "sums/base"}]
        return 200, {"data": cards}
    extra = body.get("vllm_xargs")
    mind = extra.get("mind", 0) if isinstance(extra, dict) else 0
    said = f"it is {mind % 2}"
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    if path == CHAT:
        logprobs = {"content": [{"logprob": -0.5}]}
        choice = {"message": {"role": "assistant", "content": said}, "logprobs": logprobs, "finish_reason": "stop"}
    else:
        choice = {"text": said, "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": "stop"}
    return 200, {"model": body["model"], "choices": [choice], "usage": usage}


def ask(
    inner: Inner, path: str, body: dict[str, Any] | bytes | None, served: Served = SERVED, leaves: bool = False
) -> tuple[int, Any]:
    """The status and the row of a reply; with `leaves`, the client has gone before it."""
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    half = len(content) // 2
    parts = [content[:half], content[half:]]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        if leaves:
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "headers": [(b"content-length", str(len(content)).encode()), (b"authorization", b"Bearer k")],
    }

    async def answered() -> None:
        await Names(inner, served)(scope, receive, send)
        await asyncio.sleep(0.01)
        inner.left = getattr(inner, "cancelled", 0)  # type: ignore[attr-defined]

    asyncio.run(answered())
    if not sent:
        return 0, None
    if getattr(inner, "key", b"") == b"Bearer k":
        assert dict(sent[0]["headers"]).get(b"access-control-allow-origin") == b"*"
    whole = b"".join(message["body"] for message in sent[1:])
    lengths = [value for key, value in sent[0]["headers"] if key == b"content-length"]
    assert lengths in ([], [str(len(whole)).encode()])
    return sent[0]["status"], json.loads(whole)


@pytest.mark.parametrize(
    ("name", "model", "xargs"),
    [
        ("sums", POLICY, {"mind": 0, "population": POLICY}),
        (None, POLICY, {"mind": 0, "population": POLICY}),
        ("sums/mind-7", POLICY, {"mind": 7, "population": POLICY}),
        (f"sums/mind-{2**63 - 1}", POLICY, {"mind": 2**63 - 1, "population": POLICY}),
        ("sums/base", "sums/base", None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses"])
def test_a_name_is_an_adapter_and_a_mind(name: str | None, model: str, xargs: Any, path: str) -> None:
    inner = Inner(echo)
    status, row = ask(inner, path, {"model": name, "prompt": "7 x 8?", "temperature": 0.3})
    ((_, body),) = inner.asked
    assert (status, row["model"]) == (200, name or "sums")
    assert (body["model"], body.get("vllm_xargs")) == (model, xargs)
    assert (body["prompt"], body["temperature"]) == ("7 x 8?", 0.3)


def test_a_stream_has_the_name_too() -> None:
    _, row = ask(Inner(echo), TEXT, {"model": "sums/mind-1", "prompt": "", "stream": True})
    # In two parts the name is cut here, which a stream of events never does: each is a message of its own.
    assert row["model"] in ("sums/mind-1", POLICY)


def test_a_request_may_name_another_mind_but_no_other_population() -> None:
    inner = Inner(echo)
    ask(inner, TEXT, {"model": "sums", "prompt": "", "vllm_xargs": {"mind": 5, "population": "policy-x", "top": 1}})
    assert inner.asked[0][1]["vllm_xargs"] == {"mind": 5, "population": POLICY, "top": 1}


@pytest.mark.parametrize(
    "name", ["m", POLICY, "sums/mind-", "sums/mind--1", "sums/mind-01", f"sums/mind-{2**63}", "x/vote"]
)
def test_what_is_no_name_is_not_found(name: str) -> None:
    inner = Inner(echo)
    status, row = ask(inner, TEXT, {"model": name, "prompt": ""})
    assert status == 404
    assert "there are sums, sums/vote, sums/base, sums/mind-1" in row["error"]["message"]
    assert not inner.asked


def test_without_noise_there_are_no_minds_to_name() -> None:
    plain = Served("sums", "sums/base", POLICY, adapted=True, noisy=False, config=CONFIG)
    assert listed(plain) == ["sums", "sums/vote", "sums/base"]
    assert writer(plain, "sums/mind-7") is None
    inner = Inner(echo)
    ask(inner, TEXT, {"model": "sums", "prompt": ""}, plain)
    assert inner.asked[0][1] == {"model": POLICY, "prompt": ""}
    for served in (plain, replace(plain, marked=True)):
        assert Served.of(json.loads(json.dumps(served.row()))) == served


def test_the_models_are_our_names() -> None:
    status, row = ask(Inner(echo), "/v1/models", None)
    assert status == 200
    assert [card["id"] for card in row["data"]] == listed(SERVED)
    assert {card["max_model_len"] for card in row["data"]} == {64}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_vote_reads_thoughts_whose_marks_are_special_tokens(path: str) -> None:
    """vLLM leaves special tokens out of texts: without marks, the last number would be one that was only thought of."""

    def thinks(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, row = echo(path, body)
        marks = ("[THINK]", "[/THINK]") if body.get("skip_special_tokens") is False else ("", "")
        for choice in row.get("choices", ()):
            said = f"{marks[0]}4, or is it 7?{marks[1]}" + (" 4" if marks[0] else "")
            choice.update({"message": {"content": said}} if path == CHAT else {"text": said})
        return status, row

    marked = replace(SERVED, marked=True)
    _, row = ask(Inner(thinks), path, {"model": "sums/vote", "prompt": "", "messages": []}, marked)
    assert row["vote"]["label"] == "4"
    # Who asks for texts without them has them so.
    request = {"model": "sums/vote", "prompt": "", "messages": [], "skip_special_tokens": True}
    _, row = ask(Inner(thinks), path, request, marked)
    assert row["vote"]["label"] == "7"
    # Where no mark is one, special tokens say nothing.
    inner = Inner(echo)
    ask(inner, path, {"model": "sums/vote", "prompt": "", "messages": []})
    assert not any("skip_special_tokens" in body for _, body in inner.asked)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_vote_asks_every_mind_as_a_survey_does(path: str) -> None:
    inner = Inner(echo)
    status, row = ask(inner, path, {"model": "sums/vote", "prompt": "7 x 8?", "messages": [], "metadata": {"id": "p7"}})
    assert status == 200
    minds = spawned(3, randomness.OUTSIDE_TRAINING, 4)
    expected = [
        (mind.seed, randomness.seed("token", 3, randomness.OUTSIDE_TRAINING, "p7", mind.seed, sample))
        for mind in minds
        for sample in range(2)
    ]
    assert [(body["vllm_xargs"]["mind"], body["seed"]) for _, body in inner.asked] == expected
    assert {(body["max_tokens"], body["temperature"]) for _, body in inner.asked} == {(9, 0.8)}
    odd = sum(mind.seed % 2 for mind in minds) * 2
    label = str(int(odd > 4 if odd != 4 else False))
    told = row["vote"]
    assert told["label"] == label
    assert told["agreement"] == max(odd, 8 - odd) / 8
    assert told["rollouts"] == sum(cluster["votes"] for cluster in told["clusters"]) == 8
    assert told["minds"] == [str(seed) for seed, _ in expected]
    choice = row["choices"][0]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == f"it is {label}"
    assert row["model"] == "sums/vote"
    assert row["usage"] == {"prompt_tokens": 16, "completion_tokens": 24, "total_tokens": 40}


def test_what_a_request_leaves_null_is_the_runs() -> None:
    inner = Inner(echo)
    body = {"model": "sums/vote", "prompt": "", "temperature": None, "max_tokens": None, "seed": None, "n": None}
    assert ask(inner, TEXT, body)[0] == 200
    assert {(each["max_tokens"], each["temperature"]) for _, each in inner.asked} == {(9, 0.8)}
    assert inner.asked[0][1]["vllm_xargs"]["mind"] == spawned(3, randomness.OUTSIDE_TRAINING, 1)[0].seed


@pytest.mark.parametrize("certain", range(8))
def test_the_reply_is_what_the_surest_of_the_majority_has_written(certain: int) -> None:
    """Also where he had no doubt at all: log 1 is 0."""
    count = iter(range(8))

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path != TEXT:
            return echo(path, body)
        number = next(count)
        logprobs = {"token_logprobs": [0.0 if number == certain else -0.5]}
        return 200, {"choices": [{"text": f"{number}: 7", "logprobs": logprobs, "finish_reason": "stop"}]}

    _, row = ask(Inner(answer), TEXT, {"model": "sums/vote", "prompt": ""})
    assert row["choices"][0]["text"] == f"{certain}: 7"
    assert row["vote"]["label"] == "7"


def test_a_vote_takes_the_settings_of_its_request() -> None:
    inner = Inner(echo)
    body = {"model": "sums/vote", "prompt": [5, 6], "temperature": 0, "max_tokens": 3, "seed": 8}
    assert ask(inner, TEXT, body)[0] == 200
    assert {(each["max_tokens"], each["temperature"]) for _, each in inner.asked} == {(3, 0)}
    assert inner.asked[0][1]["vllm_xargs"]["mind"] == spawned(8, randomness.OUTSIDE_TRAINING, 1)[0].seed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "", "stream": True}, "leave stream out"),
        ({"prompt": "", "n": 2}, "leave n out"),
        ({"prompt": ["a", "b"]}, "one prompt"),
        ({"prompt": "", "seed": "x"}, "seed must be an integer"),
        ({"prompt": "", "echo": True}, "leave echo out"),
        ({"prompt": "", "vllm_xargs": "mind=7"}, "vllm_xargs must be an object"),
        ({"prompt": "", "use_beam_search": True}, "leave use_beam_search out"),
    ],
)
def test_what_a_vote_cannot_give_is_refused(body: dict[str, Any], message: str) -> None:
    inner = Inner(echo)
    status, row = ask(inner, TEXT, {"model": "sums/vote", **body})
    assert (status, inner.asked) == (400, [])
    assert message in row["error"]["message"]


@pytest.mark.parametrize("name", ["sums", "sums/mind-7"])
@pytest.mark.parametrize("wrong", [{"vllm_xargs": [7]}, {"vllm_xargs": "mind=7"}, {"use_beam_search": True, "n": 2}])
def test_what_would_leave_a_mind_out_is_refused(name: str, wrong: dict[str, Any]) -> None:
    inner = Inner(echo)
    assert ask(inner, TEXT, {"model": name, "prompt": "", **wrong})[0] == 400
    assert not inner.asked
    assert ask(inner, TEXT, {"model": "sums/base", "prompt": "", **wrong})[0] == 200
    assert inner.asked[0][1] == {"model": "sums/base", "prompt": "", **wrong}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_minds_write_by_the_runs_sampling_and_not_by_what_a_model_brings_along(path: str) -> None:
    inner = Inner(echo)
    assert ask(inner, path, {"model": "sums/vote", "prompt": "", "top_k": 5})[0] == 200
    for _, body in inner.asked:
        assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["top_p"]) == (5, 0.0, 1.0, 1.0)
    ask(inner, path, {"model": "sums/vote", "prompt": ""})
    assert inner.asked[-1][1]["top_k"] == 0


@pytest.mark.parametrize(("path", "asked"), [(CHAT, True), (TEXT, 5), (TEXT, 0)])
def test_logprobs_are_given_to_those_who_ask(path: str, asked: Any) -> None:
    inner = Inner(echo)
    _, row = ask(inner, path, {"model": "sums/vote", "prompt": "", "logprobs": asked})
    assert row["choices"][0]["logprobs"]
    assert {body["logprobs"] for _, body in inner.asked} == {asked}
    for nothing in ({}, {"logprobs": False}, {"logprobs": None}):
        _, row = ask(inner, path, {"model": "sums/vote", "prompt": "", **nothing})
        assert row["choices"][0]["logprobs"] is None
        assert inner.asked[-1][1]["logprobs"] == (True if path == CHAT else 0)


def test_what_an_engine_left_off_writing_has_no_vote() -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, row = echo(path, body)
        if path == TEXT and body["seed"] % 2:
            row["choices"][0]["finish_reason"] = "abort"
        return status, row

    inner = Inner(answer)
    status, row = ask(inner, TEXT, {"model": "sums/vote", "prompt": ""})
    assert any(body["seed"] % 2 for _, body in inner.asked)
    assert (status, row["error"]["type"]) == (503, "ServiceUnavailableError")


@pytest.mark.parametrize("path", ["/v1/models", CHAT, TEXT, "/v1/messages", "/tokenize"])
@pytest.mark.parametrize("body", [{"model": "x"}, {"model": "sums/vote", "n": 3}, b"a" * 100])
def test_who_has_no_key_is_told_nothing(path: str, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LARGEST", 10)
    inner = Inner(echo)
    inner.key = b"Bearer another"
    assert ask(inner, path, None if path == "/v1/models" else body) == (401, {"error": "Unauthorized"})
    assert not inner.asked


def test_a_refusal_of_one_mind_is_the_votes() -> None:
    inner = Inner(lambda path, body: (400, {"error": {"message": "too long"}}) if path == TEXT else echo(path, body))
    assert ask(inner, TEXT, {"model": "sums/vote", "prompt": ""}) == (400, {"error": {"message": "too long"}})


def test_a_client_that_leaves_ends_its_vote() -> None:
    inner = Inner(echo)
    assert ask(inner, TEXT, {"model": "sums/vote", "prompt": "wait"}, leaves=True) == (0, None)
    assert inner.left == len(inner.asked) == 8


def test_nobody_answers_at_other_paths_in_the_place_of_a_mind() -> None:
    inner = Inner(echo)
    assert ask(inner, "/v1/messages", {"model": "sums"})[0] == 404
    assert ask(inner, "/v1/load_lora_adapter", {"lora_name": "x"})[0] == 404
    assert not inner.asked
    ask(inner, "/tokenize", {"model": "sums/mind-7", "prompt": ""})
    assert inner.asked == [("/tokenize", {"model": POLICY, "prompt": ""})]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": 3}', b"\xff"])
def test_what_is_no_request_goes_to_vllm_which_says_so(content: bytes) -> None:
    seen: list[bytes] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            seen.append((await receive())["body"])
        status = 400 if scope["method"] == "POST" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    assert ask(inner, TEXT, content) == (400, {})  # type: ignore[arg-type]
    assert seen == [content]


def test_a_request_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LARGEST", 10)
    assert ask(Inner(echo), TEXT, {"model": "sums", "prompt": "a" * 20})[0] == 413
