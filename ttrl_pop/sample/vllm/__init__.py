"""Rollouts by vLLM: a mind for each request in one continuous batch (docs/VLLM.md).

    options.py     the table `backend_options`, and what of vLLM's settings is refused
    backend.py     the policy's side: who writes what, under which weights
    selftest.py    the proof, at every start, that minds reach the tokens that they should
    engine.py      vLLM's side: start, adapter, requests in, tokens out
    worker.py      the same inside vLLM's worker process
    norms.py       the offsets of the minds, added after every norm
    runner_v1.py, runner_v2.py     which mind owns which token of a batch, for vLLM's two model runners
    cpu_draws.py, cpu_adapter.py   seeded draws and adapters on a CPU

Only engine.py, worker.py and runner_v2.py import vLLM, and none of them is imported before a `VllmBackend` is made.
"""

from ttrl_pop.sample.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
