"""Cross-attention with its projections multiplied out: the same function, and only where it is the smaller one."""

from typing import Any

import pytest
import torch
from dragoman.modeling import decoding_step
from dragoman.modeling.attention import Attention
from dragoman.modeling.decoding_step import DecodingStep
from dragoman.modeling.source_attention import SourceAttention, suits
from torch import Tensor, nn

from dragoman import DragomanConfig, quantize
from support import build, tiny

HEADS, GROUPS, SIZE, CHANNELS = 4, 2, 6, 20


def layer(dtype: torch.dtype = torch.float64, **fields: Any) -> Attention:
    torch.manual_seed(0)
    config = DragomanConfig(hidden_size=CHANNELS, encoder_num_attention_heads=HEADS, head_dim=SIZE, **fields)
    attention = Attention(config, HEADS, HEADS // GROUPS, layer_idx=0, is_causal=False).to(dtype)
    for weight in attention.parameters():
        nn.init.normal_(weight, std=0.5)
    return attention


def keys_and_values(attention: Attention, source: Tensor) -> tuple[Tensor, ...]:
    shape = (*source.shape[:2], -1, SIZE)
    return tuple(project(source).view(shape).transpose(1, 2) for project in (attention.k_proj, attention.v_proj))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fields", [{}, {"attention_bias": True, "attention_scale": 0.7}], ids=["plain", "biases"])
def test_the_same_function(fields: dict[str, Any], masked: bool) -> None:
    attention = layer(**fields)
    source, x = torch.randn(1, 5, CHANNELS).double(), torch.randn(3, CHANNELS).double()
    hidden = torch.tensor([False, True, False, False, True])
    mask = torch.zeros(1, 1, 1, 5).double().masked_fill(hidden, -torch.inf) if masked else None
    multiplied_out = SourceAttention(attention, *keys_and_values(attention, source), mask)  # type: ignore[call-arg]
    visible = source[:, ~hidden] if masked else source
    expected = attention(x[None], visible, mask=None)[0][0]
    torch.testing.assert_close(multiplied_out(x), expected, rtol=1e-12, atol=1e-12)


def test_of_nothing_to_see_what_torch_gives() -> None:
    attention = layer(attention_bias=True)
    attention.config._attn_implementation = "sdpa"
    source, x = torch.randn(1, 5, CHANNELS).double(), torch.randn(3, CHANNELS).double()
    mask = torch.full((1, 1, 1, 5), -torch.inf).double()
    found = SourceAttention(attention, *keys_and_values(attention, source), mask)(x)  # type: ignore[call-arg]
    torch.testing.assert_close(found, attention(x[None], source, mask=mask)[0][0])


def test_where_it_suits() -> None:
    def asked(sources: int, length: int, dtype: torch.dtype = torch.float32) -> bool:
        attention = layer(dtype)
        return suits(attention, keys_and_values(attention, torch.randn(sources, length, CHANNELS).to(dtype))[0])

    assert asked(1, SIZE)
    assert asked(1, 1, torch.float64)
    assert not asked(1, SIZE + 1)
    assert not asked(2, 3)
    assert not asked(1, 3, torch.bfloat16)  # the products would be rounded
    attention = layer(torch.float32)
    keys = keys_and_values(attention, torch.randn(1, 3, CHANNELS))[0]
    attention.o_proj = nn.Sequential(attention.o_proj)  # type: ignore[assignment]
    assert not suits(attention, keys)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize(
    "fields",
    [{}, {"position_encoding": "relative", "decoder_num_key_value_heads": 1}, {"attention_bias": True}],
    ids=["plain", "grouped", "biases"],
)
def test_one_source(
    fields: dict[str, Any], mode: dict[str, Any], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens and scores as with projections, and as by transformers' loop; a prompt of several tokens, too."""
    model = build(tiny(head_dim=8, **fields)).double()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.cross_attn.o_proj.weight.mul_(3)
    ids = torch.tensor([[0, 0, 9, 5, 7, 11, 2]] if masked else [[9, 5, 7, 11, 13, 6, 2]])
    prompt = torch.tensor([[model.config.decoder_start_token_id, 4, 8]])
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, **mode}
    taken: list[bool] = []

    def generate() -> Any:
        torch.manual_seed(0)
        mask = (ids != 0).long()
        return model.generate(input_ids=ids, attention_mask=mask, decoder_input_ids=prompt, **options)

    def watched(step: DecodingStep, *arguments: Any) -> Tensor:
        taken.extend(layer.multiplied_out is not None for layer in step.layers)
        return forward(step, *arguments)

    forward = DecodingStep.__call__
    monkeypatch.setattr(DecodingStep, "__call__", watched)
    found = generate()
    assert set(taken) == {True}
    monkeypatch.setattr(decoding_step, "suits", lambda *_: False)
    by_projections = generate()
    monkeypatch.setattr(model.config, "_attn_implementation", "eager")  # which the step does not cover
    taken.clear()
    by_transformers = generate()
    assert not taken
    for expected in (by_projections, by_transformers):
        assert found.sequences.tolist() == expected.sequences.tolist()
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-8, atol=1e-8)
    keys = found.past_key_values.cross_attention_cache.layers[0].keys
    torch.testing.assert_close(keys, by_transformers.past_key_values.cross_attention_cache.layers[0].keys)


def test_int8_keeps_its_projections() -> None:
    model = quantize(build(tiny()))
    keys = torch.zeros(1, 4, 3, model.config.head_dim_of(4))
    assert not suits(model.model.decoder.layers[0].cross_attn, keys)
