"""Real servers of vLLM on 127.0.0.1, as an operator starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fakes import ROOT

TINY = (
    *("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"),
    *("--kv-cache-memory-bytes", str(2**26), "--block-size", "32"),
)
START = 300
"""Seconds that a server has to start."""


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TORCHDYNAMO_DISABLE": "1",
        **more,
    }


class Serving:
    """A server's process, with all that it has started."""

    def __init__(self, command: list[str], port: int, log: Path, **more: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=environment(**more), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> "Serving":
        """Until it answers."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            try:
                self.ask("/v1/models")
                return self
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.log.read_text()[-5000:])

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def kill(self) -> None:
        """As when a machine is gone: nothing of it is left."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


def vllm_serve(model: str, folder: Path, log: Path, rank: int = 8) -> Serving:
    """`vllm serve` with the plug-in; its command does not start where the package is called vllm-cpu."""
    port = free_port()
    settings = json.dumps({"ttrl_pop": {"folder": str(folder)}})
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", *TINY]
    command += ["--enable-lora", "--max-lora-rank", str(rank), "--enable-prompt-tokens-details"]
    command += ["--additional-config", settings]
    return Serving(command, port, log, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1")
