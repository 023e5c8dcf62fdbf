"""What a look measures of a model: all of a small one, a part of a large one that a CPU has soon."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from fakes import tiny_model

from ttrl_pop.config_file import load_config
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.plan.forecast import ROOM, _measured_part, seconds
from ttrl_pop.plan.probe import Line, Speed
from ttrl_pop.plan.work import Forwards, Part, Prompts


def outline(hidden: int, layers: int, vocabulary: int, tied: bool = True) -> LoadedModel:
    """A model without numbers, whose layers have about 12 × hidden² of them."""
    settings: Any = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    return replace(tiny_model(), network=network)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary", "expected"),
    [
        (64, 8, 1000, (2, 1000)),
        (64, 1, 1000, (1, 1000)),
        (1024, 4, 150_000, (2, ROOM // 2 // 4096)),
        (2048, 4, 1000, (1, 1000)),
        (4096, 4, 150_000, (1, ROOM // 2 // 16384)),
    ],
    ids=["small", "one layer", "large vocabulary", "large layers", "large"],
)
def test_of_what_is_large_a_part_is_measured(
    tied: bool, hidden: int, layers: int, vocabulary: int, expected: tuple[int, int]
) -> None:
    model = outline(hidden, layers, vocabulary, tied)
    assert _measured_part(model, torch.device("cpu")) == expected
    assert _measured_part(model, torch.device("cuda")) == (min(2, layers), vocabulary)


@pytest.mark.parametrize(("name", "states"), [("baseline", 64), ("calibration", 64 + 17 * 64 * 2 * 5)])
def test_the_output_layer_is_read_for_each_part_of_the_states(name: str, states: int) -> None:
    nothing = Line(0.0, 0.0)
    speed = Speed(nothing, nothing, Line(16.0, 0.5), None, None, update=0.0, cache_bytes=0, kept_bytes=0.0)
    config = load_config(None, {"sampling.max_new_tokens": 5})
    part, prompts = Part(name, 64, 1, 64, 64), Prompts(mean=9.0, longest=9, packed=9.0, per_forward=1.0)
    # 32 states at once take 16 + 32 / 2 seconds, each of them one.
    assert seconds(part, config, Forwards(2048, 64, logits=32), prompts, speed, slots=64) == pytest.approx(states)
