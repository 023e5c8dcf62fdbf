"""Rollouts by vLLM: a mind for each request in one continuous batch (docs/VLLM.md).

    options.py     the table `backend_options`, and what of vLLM's settings is refused
    backend.py     the policy's side: who writes what, under which weights
    selftest.py    the proof, at every start, that minds reach the tokens that they should
    launch.py      how vLLM is started: its settings, what is refused, the watch over its process
    engine.py      vLLM's side: adapter and minds in, requests in, tokens out
    worker/        the same inside vLLM's worker process

Only launch.py, engine.py, worker/worker.py and worker/seeded.py import vLLM, and none of them is imported before an
engine is made.
"""
