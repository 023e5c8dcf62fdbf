"""A server that speaks as `vllm serve` with our plug-in does, on a tiny policy of the learner's own kind.

It holds its own copy of the model, reads policies from the folder by their names alone, and draws a token by the seed
of its request: what differs from vLLM is the engine.
"""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch

from ttrl_pop.config import SamplingConfig
from ttrl_pop.model.policy import Policy
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.plugin import Norms, mind_of
from ttrl_pop.types import Mind

BASE = "tiny"
LONGEST = 250


class FakeVllm:
    """A server on 127.0.0.1, until `stop`."""

    def __init__(self, policy: Policy, folder: Path, key: str | None = None) -> None:
        self.policy = policy
        self.folder = folder
        self.key = key
        self.asked: list[dict[str, Any]] = []
        """Requests for completions, in the order in which they came."""
        self.answered = 0
        self.no_adapters = False
        """Started without VLLM_ALLOW_RUNTIME_LORA_UPDATING."""
        self._read: set[str] = set()
        """Prompts in the cache, each with who has read it."""
        self.hold: Callable[[], object] = lambda: None
        """Returns when the server may begin with a request."""
        self.change: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda answer: answer
        """What becomes of an answer; None: the connection breaks."""
        self._turn = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                card = {"id": BASE, "parent": None, "max_model_len": LONGEST}
                self.reply(200, {"object": "list", "data": [card, {"id": "x", "parent": BASE}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if fake.no_adapters and body["model"] != BASE:
                    said = f"The model `{body['model']}` does not exist. Valid aliases: {BASE}."
                    self.reply(404, {"error": {"message": said}})
                    return
                try:
                    answer = fake.complete(body)
                except ValueError as error:
                    self.reply(400, {"error": {"message": str(error)}})
                    return
                if answer is None:
                    self.connection.close()
                else:
                    self.reply(200, answer)

            def reply(self, status: int, row: dict[str, Any]) -> None:
                if fake.key is not None and self.headers["Authorization"] != f"Bearer {fake.key}":
                    status, row = 401, {"error": "Unauthorized"}
                content = json.dumps(row).encode()
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                return

        # Closed, it waits for what is under way: torch does not like to be left by the interpreter.
        class Server(ThreadingHTTPServer):
            daemon_threads = False

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True, args=(0.01,)).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def complete(self, body: dict[str, Any]) -> dict[str, Any] | None:
        self.hold()
        with self._turn:
            self.asked.append(body)
            answer = self.change(self._written(body))
            self.answered += answer is not None
            return answer

    def _written(self, body: dict[str, Any]) -> dict[str, Any]:
        policy = self.policy
        adapted = body["model"] != BASE
        if adapted:
            path = policy_files.find(self.folder, body["model"])
            weights = safetensors.torch.load_file(path / "adapter_model.safetensors")
            try:
                peft.set_peft_model_state_dict(policy.adapter, weights)
            except RuntimeError as error:
                raise ValueError(f"LoRA adapter '{path.name}' was found but could not be loaded.") from error
        extra = body.get("vllm_xargs") or {}
        mind = None
        norms = Norms(getattr(policy.population, "sites", ()), policy.network.config.hidden_size)
        if mind_of(extra, {"folder": str(self.folder)}, lambda: norms):
            mind = Mind(extra["mind"])
            noise = policy_files.read_population(self.folder, extra["population"])
            with torch.no_grad():
                policy.population.mu.copy_(noise.mu)
                policy.population.log_sigma.copy_(noise.log_sigma)
        sampling = SamplingConfig(
            max_new_tokens=body["max_tokens"], temperature=body["temperature"], top_p=body["top_p"], stop=body["stop"]
        )
        request = Request(tuple(body["prompt"]), mind, ("served", body["seed"]))
        engine = HfBackend(policy, sampling)
        ((_, rollout),) = engine.rollouts([request], "policy" if adapted else "base")
        reader = json.dumps([body["model"], extra, body["prompt"]], sort_keys=True)
        cached = len(body["prompt"]) if reader in self._read else 0
        self._read.add(reader)
        return {
            "choices": [
                {
                    "token_ids": list(rollout.completion_ids),
                    "logprobs": {"token_logprobs": list(rollout.logprobs)},
                    "finish_reason": rollout.finish_reason,
                    "text": rollout.text,
                }
            ],
            "usage": {"prompt_tokens_details": {"cached_tokens": cached} if cached else None},
        }
