"""vLLM's worker, with the minds in it: what the engine names as its worker class, in every worker process.

The norms change their class when the model is loaded, before anything is compiled or captured. The methods `mind_...`
are called by `collective_rpc`; what they take and return passes through vLLM's message format.
"""

import os
import select
import signal
import threading
from typing import Any

from vllm.platforms import current_platform

from ttrl_pop.sample.vllm.plugin import SETTINGS
from ttrl_pop.sample.vllm.worker import runner_v1, runner_v2
from ttrl_pop.sample.vllm.worker.cpu_adapter import share_products
from ttrl_pop.sample.vllm.worker.cpu_draws import make_rewindable
from ttrl_pop.sample.vllm.worker.norms import Minds

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base

OWNER = "TTRL_POP_ENGINE_OWNER"
"""Environment variable: process id of the learner; not set where an engine outlives who asks."""


class MindWorker(Base):  # type: ignore[misc]
    """vLLM's worker with a table of minds."""

    minds: Minds | None = None
    shares_adapter = True
    """All requests of a batch have the same adapter, or none has one."""

    def load_model(self, **kwargs: Any) -> None:
        if OWNER in os.environ:
            end_with(int(os.environ[OWNER]))
        super().load_model(**kwargs)
        if current_platform.is_cpu() and not self.use_v2_model_runner:
            runner_v1.after_layout(self.model_runner, lambda _: make_rewindable(self.model_runner))
            if self.shares_adapter and self.vllm_config.lora_config is not None:
                share_products(self.model_runner)
        settings = self.vllm_config.additional_config[SETTINGS]
        if not settings["sites"]:
            return
        runner = self.model_runner
        tokens = self.vllm_config.scheduler_config.max_num_batched_tokens
        self.minds = self.table(runner.get_model(), settings, tokens)
        plane = runner_v2 if self.use_v2_model_runner else runner_v1
        plane.install(runner, self.minds)

    def table(self, model: Any, settings: dict[str, Any], tokens: int) -> Minds:
        """The table of minds of the loaded `model`, for batches of up to `tokens`."""
        return Minds(model, settings["sites"], settings["slots"], tokens, self.device)

    def mind_write(self, offsets: bytes, count: int) -> str:
        return self._minds.write(offsets, count)

    def mind_clear(self) -> None:
        self._minds.clear()

    def mind_fill(self, slot: int | None) -> None:
        self._minds.fill(slot)

    def mind_arm(self) -> None:
        self._minds.armed = True

    def mind_tagged(self) -> int:
        return self._minds.take_tagged()

    @property
    def _minds(self) -> Minds:
        if self.minds is None:
            raise ValueError("this engine was started without sites for minds")
        return self.minds


def end_with(owner: int) -> None:
    """Let this worker's process, and the engine's above it, be killed when the learner's ends: neither notices when it
    is killed. Linux only."""
    own, parent = os.getpid(), os.getppid()
    if own == owner or not hasattr(os, "pidfd_open"):
        return
    waiting = select.poll()
    waiting.register(os.pidfd_open(owner), select.POLLIN)

    def wait() -> None:
        waiting.poll()
        for process in (parent, own):
            if process != owner:
                os.kill(process, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
