from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ttrl_pop.packing import budget

GPU = torch.device("cuda")


def network(hidden: int, inner: int, layers: int, dtype: torch.dtype = torch.bfloat16) -> object:
    text = SimpleNamespace(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    weight = nn.Parameter(torch.empty(1, dtype=dtype))
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text), parameters=lambda: iter([weight]))


SMALL, LARGE = (576, 1536, 30), (3584, 18944, 28)


def test_a_gpu_reads_as_much_as_its_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens(gib: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> int:
        monkeypatch.setattr(budget, "limit_bytes", lambda device: gib * 2**30)
        return budget.learner_tokens(None, GPU, network(*shape, dtype))

    # 783 KB and 6.6 MB of a token of the two, in bf16: three eighths of the memory.
    assert tokens(24, SMALL) == 12 * 1024
    assert tokens(80, LARGE) == 4 * 1024
    assert tokens(140, SMALL) == budget.LEARNER_TOKENS["cuda"]
    assert tokens(24, SMALL, torch.float32) == 6 * 1024
    # Less would be over before the GPU has been told of it: where there is no room, memory runs out and it is halved.
    assert tokens(8, LARGE) == budget.LEARNER_TOKENS["cpu"]


def test_what_was_asked_for_is_done_and_a_cpu_has_its_own() -> None:
    assert budget.learner_tokens(7, GPU, network(*LARGE)) == 7
    assert budget.learner_tokens(None, torch.device("cpu"), network(*SMALL)) == 1024
    assert budget.prefill_tokens(None, GPU) == 2**14
