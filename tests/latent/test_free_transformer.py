"""The Free Transformer: what sees what, and where a code enters."""

import pytest
import torch
from torch import Tensor

from ttrl_pop.latent.encoder import Encoder
from ttrl_pop.latent.free_transformer import FreeTransformer, Pasts, Shape
from ttrl_pop.latent.layers import rotary, turned

SHAPE = Shape(vocabulary=11, length=12, width=16, blocks=4, heads=2, bits=5)


@pytest.fixture(params=[False, True], ids=["additive", "table"])
def model(request: pytest.FixtureRequest) -> FreeTransformer:
    torch.manual_seed(0)
    shape = Shape(**{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"table": request.param})
    return FreeTransformer(shape).double()


@pytest.fixture
def tokens_BT() -> Tensor:
    return torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bits_BTH() -> Tensor:
    drawn = torch.rand(2, 12, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (drawn < 0.5).double()


def changed(tokens_BT: Tensor, place: int) -> Tensor:
    found = tokens_BT.clone()
    found[:, place] = (found[:, place] + 1) % 11
    return found


def test_positions_tell_the_queries_of_the_encoder_apart(model: FreeTransformer) -> None:
    """ζ is the same everywhere: without positions, every Z_t of a text would be the same, too."""
    logits_TH = model.encode(model.lower(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])))[0]
    assert (logits_TH[1:] - logits_TH[:-1]).abs().amax(-1).min() > 1e-3


def test_heads_of_the_encoder_begin_by_looking_ahead() -> None:
    """Head n attends to the token n + 1 places on more than to any other, whatever stands there."""
    torch.manual_seed(1)
    heads, width, length = 4, 16, 20
    encoder = Encoder(64, 64, heads, 3, rotary_base=100.0)
    positions = rotary(length, width, 100.0)
    bias_NW = encoder.attention.key_bias_NW
    assert bias_NW is not None
    query_NW = encoder.attention.query(encoder.before_queries(encoder.zeta_D)).view(heads, width)
    queries_NTW, keys_NTW = (turned(each[:, None].expand(-1, length, -1), positions) for each in (query_NW, bias_NW))
    seen_NTT = queries_NTW @ keys_NTW.transpose(1, 2)
    for head in range(heads):
        assert seen_NTT[head, :8].argmax(-1).tolist() == [t + head + 1 for t in range(8)]


def test_an_encoder_of_places_knows_where_what_it_reads_stands() -> None:
    """Of a text of one sign, an encoder without places makes one code at all positions, as each mixes the same."""
    positions = rotary(20, 16, 100.0)
    states_1TD = torch.randn(64, generator=torch.Generator().manual_seed(1)).expand(1, 20, 64)
    for places in (False, True):
        torch.manual_seed(1)
        encoder = Encoder(64, 64, 4, 3, rotary_base=100.0, places=places)
        logits_TH = encoder(states_1TD, positions)[0]
        spread = (logits_TH[1:] - logits_TH[:-1]).abs().amax(-1)
        assert (spread > 1e-3).all() if places else (spread < 1e-5).all()
        bias_NW = encoder.attention.key_bias_NW
        assert bias_NW is not None
        assert bool(bias_NW.any()) is not places


def test_the_encoder_sees_the_whole_text(model: FreeTransformer, tokens_BT: Tensor) -> None:
    # Not balanced: that is done over the whole text whatever the encoder sees.
    positions = model._positions(tokens_BT.shape[1])
    first = [model.encoder(model.lower(tokens), positions)[:, 0] for tokens in (tokens_BT, changed(tokens_BT, 11))]
    # Heads begin by looking near themselves: little, where a causal encoder would see nothing.
    assert (first[0] - first[1]).abs().max() > 1e-5


def test_the_code_of_the_last_token_is_not_charged(model: FreeTransformer, tokens_BT: Tensor) -> None:
    uniforms_BTH = torch.rand(*tokens_BT.shape, model.shape.bits, generator=torch.Generator().manual_seed(1))
    assert model.loss(tokens_BT, uniforms_BTH).kl_BT.shape == (len(tokens_BT), tokens_BT.shape[1] - 1)


def test_the_decoder_sees_neither_tokens_nor_codes_ahead(
    model: FreeTransformer, tokens_BT: Tensor, bits_BTH: Tensor
) -> None:
    logits_BTV = model.logits(tokens_BT, bits_BTH)
    other_BTH = bits_BTH.clone()
    other_BTH[:, 7] = 1 - other_BTH[:, 7]
    for found in (model.logits(changed(tokens_BT, 7), bits_BTH), model.logits(tokens_BT, other_BTH)):
        assert torch.equal(found[:, :7], logits_BTV[:, :7])
        assert (found[:, 7:] - logits_BTV[:, 7:]).abs().amax((0, 2)).min() > 1e-6


def test_a_code_enters_keys_and_values_of_the_middle_block_and_nothing_else(
    model: FreeTransformer, tokens_BT: Tensor, bits_BTH: Tensor
) -> None:
    """Against a forward written by hand: queries and the residual stream are those of X, keys and values of X + R."""
    injection_BTD = model.code_map(torch.zeros_like(bits_BTH), bits_BTH)
    positions = tuple(table.double() for table in rotary(12, 8, SHAPE.rotary_base))
    states_BTD = model.embedding(tokens_BT)
    for place, block in enumerate(model.blocks):
        entering = injection_BTD if place == 2 else torch.zeros_like(states_BTD)
        normed = torch.nn.functional.rms_norm(states_BTD, (16,), block.before_attention.weight, 1e-5)
        source = torch.nn.functional.rms_norm(states_BTD + entering, (16,), block.before_attention.weight, 1e-5)
        mixed = by_hand(block.attention, normed, source, positions)
        states_BTD = states_BTD + mixed @ block.attention.out.weight.T
        normed = torch.nn.functional.rms_norm(states_BTD, (16,), block.before_feed_forward.weight, 1e-5)
        gate, value = (normed @ block.feed_forward.gate_in.weight.T).chunk(2, -1)
        states_BTD = states_BTD + (gate * torch.sigmoid(gate) * value) @ block.feed_forward.out.weight.T
    logits_BTV = torch.nn.functional.rms_norm(states_BTD, (16,), model.before_head.weight, 1e-5) @ model.head.weight.T
    torch.testing.assert_close(model.logits(tokens_BT, bits_BTH), logits_BTV, atol=1e-6, rtol=0)


def by_hand(attention: torch.nn.Module, normed: Tensor, source: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
    """Causal attention of two heads of width 8, one query at a time."""
    query_BTD = normed @ attention.query.weight.T
    key_BTD, value_BTD = (source @ attention.key_value.weight.T).chunk(2, -1)
    mixed = torch.zeros_like(query_BTD)
    for head in (slice(0, 8), slice(8, 16)):
        for t in range(12):
            query = turn(query_BTD[:, t, head], t, positions)
            keys = torch.stack([turn(key_BTD[:, s, head], s, positions) for s in range(t + 1)], 1)
            weights = torch.softmax((keys @ query[..., None])[..., 0] / 8**0.5, -1)
            mixed[:, t, head] = (weights[..., None] * value_BTD[:, : t + 1, head]).sum(1)
    return mixed


def turn(state_BW: Tensor, position: int, positions: tuple[Tensor, ...]) -> Tensor:
    """Each pair (w, w + 4) as a complex number, turned by the angle of its position."""
    turned = torch.complex(state_BW[:, :4], state_BW[:, 4:]) * torch.complex(
        positions[0][position, :4], positions[1][position, :4]
    )
    return torch.cat([turned.real, turned.imag], -1)


def test_the_same_random_numbers_give_the_same_loss(model: FreeTransformer, tokens_BT: Tensor) -> None:
    uniforms_BTH = torch.rand(2, 12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    losses = [model.loss(tokens_BT, uniforms_BTH).total(0.1) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    # A code that never decides: at uniform 1 no bit is on, at 0 all are.
    assert not torch.equal(
        model.loss(tokens_BT, torch.zeros_like(uniforms_BTH)).cross_entropy,
        model.loss(tokens_BT, torch.ones_like(uniforms_BTH)).cross_entropy,
    )


def test_the_encoder_learns_from_the_cross_entropy_alone(model: FreeTransformer, tokens_BT: Tensor) -> None:
    """With all bits free, what reaches the encoder came through the code."""
    uniforms_BTH = torch.rand(2, 12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model.loss(tokens_BT, uniforms_BTH).total(kappa=100.0).backward()
    for name, weight in model.encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_texts_of_one_code_and_temperature_nearly_zero_are_the_same(model: FreeTransformer, bits_BTH: Tensor) -> None:
    with torch.no_grad():
        for weight in model.code_map.parameters():
            weight.mul_(30)
    prompts = torch.tensor([[1, 2], [1, 2]])
    shared = bits_BTH[:1].expand(2, -1, -1)
    alike, apart = (
        model.generate(prompts, codes, 1e-6, torch.Generator().manual_seed(0)) for codes in (shared, bits_BTH)
    )
    assert torch.equal(alike[0], alike[1])
    assert alike.shape == (2, 12)
    assert not torch.equal(apart[0], apart[1])
    assert torch.equal(apart[:, :2], prompts)


def test_what_is_written_token_by_token_has_the_probabilities_of_the_whole_text(
    model: FreeTransformer, tokens_BT: Tensor, bits_BTH: Tensor
) -> None:
    pasts = Pasts(4)
    pieces = [slice(0, 3), *(slice(t, t + 1) for t in range(3, 12))]
    logits = [model.logits(tokens_BT[:, piece], bits_BTH[:, piece], pasts) for piece in pieces]
    torch.testing.assert_close(torch.cat(logits, 1), model.logits(tokens_BT, bits_BTH), atol=1e-12, rtol=0)
