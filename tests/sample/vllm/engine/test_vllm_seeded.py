"""Minds by their seeds in vLLM's real engine: what a seed wrote is what the population reads under it."""

from typing import Any

import pytest
import torch
from vllm_models import Models

from ttrl_pop.api.population import population
from ttrl_pop.types import Mind

SIGMA = 0.1
SEEDS = (0, 11, 2**62 + 5, 13, None)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, models: Models) -> str:
    return models.path(request.param)


def engine(folder: str, **more: Any) -> Any:
    from vllm import LLM

    return LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=3,
        kv_cache_memory_bytes=2**26,
        skip_tokenizer_init=True,
        logprobs_mode="processed_logprobs",
        block_size=32,
        additional_config={"ttrl_pop": {"sigma": SIGMA}},
        **more,
    )


@pytest.fixture(scope="module")
def llm(folder: str) -> Any:
    return engine(folder)


def test_what_a_seed_wrote_is_what_the_population_reads_under_it(folder: str, llm: Any) -> None:
    import transformers
    from vllm import SamplingParams

    prompts = [[3 + (7 * n + k) % 40 for k in range(4 + 3 * n)] for n in range(len(SEEDS))]
    settings = [
        SamplingParams(
            max_tokens=8,
            logprobs=0,
            seed=n,
            ignore_eos=True,
            detokenize=False,
            extra_args=None if seed is None else {"mind": seed},
        )
        for n, seed in enumerate(SEEDS)
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    minds = population(network, sigma=SIGMA)
    gaps, base = [], []
    for ids, seed, output in zip(prompts, SEEDS, outputs, strict=True):
        (said,) = output.outputs
        own = [place[token].logprob for token, place in zip(said.token_ids, said.logprobs, strict=True)]
        whole = torch.tensor([[*ids, *said.token_ids]])
        for mind, found in ((Mind(seed or 0), gaps), (Mind(0), base)):
            with torch.no_grad(), minds.embody([mind]):
                logprobs = network(whole).logits.log_softmax(-1)[0, len(ids) - 1 : -1]
            read = logprobs.gather(1, torch.tensor(said.token_ids)[:, None])[:, 0]
            found.append(float((read - torch.tensor(own)).abs().max()))
    assert max(gaps) < 1e-4
    assert min(base[1:4]) > 1e-2


def test_a_prompt_is_read_from_the_cache_of_its_own_mind_alone(llm: Any) -> None:
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": [3 + k % 40 for k in range(70)]}
    cached = []
    for seed in (5, 7, None, 5, 0, 7, None):
        extra = None if seed is None else {"mind": seed}
        (output,) = llm.generate(
            [prompt], [SamplingParams(max_tokens=1, detokenize=False, extra_args=extra)], use_tqdm=False
        )
        cached.append(output.num_cached_tokens)
    assert cached == [0, 0, 0, 64, 0, 64, 64]


@pytest.mark.parametrize("mind", [-1, "7", 1.5, 2**63])
def test_what_is_no_mind_is_refused_and_the_engine_goes_on(llm: Any, mind: object) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    prompt = {"prompt_token_ids": [3, 4, 5]}
    with pytest.raises(VLLMValidationError, match="a mind is a seed"):
        llm.generate([prompt], [SamplingParams(max_tokens=1, extra_args={"mind": mind})], use_tqdm=False)
    assert llm.generate([prompt], [SamplingParams(max_tokens=1, detokenize=False)], use_tqdm=False)


def test_a_cache_without_the_plugin_is_refused(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setattr(EngineArgs, "create_engine_config", EngineArgs.create_engine_config.__wrapped__)
    worker = "ttrl_pop.sample.vllm.worker.seeded.SeededWorker"
    with pytest.raises(Exception, match=r"VLLM_PLUGINS|initialization failed"):
        engine(models.path("llama"), worker_cls=worker, enable_prefix_caching=True)
