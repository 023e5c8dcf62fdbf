"""What runs inside vLLM's worker processes: minds added after norms, each to the tokens of its requests.

    worker.py                      vLLM's worker, with the minds in it
    seeded.py                      the same for clients that know seeds alone, as verl's are
    norms.py                       the offsets of the minds, added after every norm
    seeds.py                       a table that draws a mind when its seed first comes
    runner_v1.py, runner_v2.py     which mind owns which token of a batch, for vLLM's two model runners
    cpu_draws.py, cpu_adapter.py   seeded draws and adapters on a CPU

For another model runner, write its `install(runner, minds)` and choose it in worker.py; the tests are those of
tests/sample/vllm/engine.
"""
