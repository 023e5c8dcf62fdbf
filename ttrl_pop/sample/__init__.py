"""Sample: problems × minds → groups of rollouts, by an engine (`sample`, `Backend`).

An engine is a subclass of `ttrl_pop.sample.backend.Backend` with `rollouts`, and with `refresh` where it has weights of
its own. Name it `--backend MODULE:CLASS`, or in `ttrl_pop.plugins.BUILT_IN` as `hf` and `vllm` are, each in a folder of
its own. Hold it to the tests of tests/sample/hf/test_backend.py, or those of tests/sample/vllm/engine where its
rounding depends on the batch.
"""
