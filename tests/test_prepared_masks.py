"""Masks, positions and caches that callers make themselves: every form that says the same computes the same."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EncoderDecoderCache, StaticCache

from support import SCHEMES, build, tiny

SOURCE = torch.tensor([[4, 9, 12, 7, 5, 30], [8, 22, 3, 16, 10, 5]])
TARGET = torch.tensor([[1, 11, 6, 19, 25], [1, 34, 8, 4, 20]])
IMPLEMENTATIONS = ["eager", "sdpa", "flex_attention"]


def logits(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**{"input_ids": SOURCE, "decoder_input_ids": TARGET, **inputs}).logits


def block_diagonal() -> tuple[Tensor, Tensor]:
    """Targets of three and of two tokens in a row: (B, 1, T, T), and where each token stands (B, T)."""
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).tril().bool()
    return blocks.expand(2, 1, -1, -1), torch.tensor([0, 1, 2, 0, 1]).expand(2, -1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_static_cache_with_room_for_a_longer_source(padded: bool, implementation: str) -> None:
    model = build(tiny(), attn_implementation=implementation)
    mask = torch.ones_like(SOURCE)
    mask[0, 4:] = int(not padded)
    expected = logits(model, attention_mask=mask)
    text = model.config.get_text_config(decoder=True)
    cache = EncoderDecoderCache(StaticCache(text, max_cache_len=9), StaticCache(text, max_cache_len=11))
    found = [
        logits(model, attention_mask=mask, decoder_input_ids=piece, past_key_values=cache)
        for piece in TARGET.split([2, 1, 2], dim=1)
    ]
    torch.testing.assert_close(torch.cat(found, 1), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_mask_of_pairs_may_be_of_any_type(implementation: str) -> None:
    """In the encoder (B, 1, S, S), and what cross-attention makes of it; in the decoder (B, 1, T, T)."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.rand(2, 1, 6, 6, generator=generator) > 0.4
    pairs[:, :, :, 5] = False  # a token that nobody sees
    pairs |= torch.eye(6).bool() & (torch.arange(6) < 5)
    pairs[:, :, 5, 0] = True
    blocks, places = block_diagonal()
    positions = {"position_ids": torch.arange(6).expand(2, -1), "decoder_position_ids": places}
    expected = logits(build(tiny()), attention_mask=pairs, decoder_attention_mask=blocks, **positions)
    model = build(tiny(), attn_implementation=implementation)
    for form in (
        torch.Tensor.bool,
        torch.Tensor.long,
        lambda mask: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min),
    ):
        given = {"attention_mask": form(pairs), "decoder_attention_mask": form(blocks)}
        torch.testing.assert_close(logits(model, **given, **positions), expected, rtol=1e-4, atol=1e-4)
    one = {"attention_mask": pairs[:1], "decoder_attention_mask": blocks[:1]}  # for every row
    same = {"attention_mask": pairs[:1].expand(2, -1, -1, -1), "decoder_attention_mask": blocks}
    torch.testing.assert_close(logits(model, **one, **positions), logits(model, **same, **positions))
    cut = SOURCE.clone()
    cut[:, 5] = 4
    found = logits(model, input_ids=cut, attention_mask=pairs.long(), decoder_attention_mask=blocks, **positions)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # nor does cross-attention


@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions_of_one_row_are_those_of_all(scheme: str) -> None:
    model = build(tiny(position_encoding=scheme))
    for dtype in (torch.long, torch.int):
        for rows in (1, 2):
            places = torch.arange(5, dtype=dtype).expand(rows, -1)
            for use_cache in (True, False):
                found = logits(model, decoder_position_ids=places, use_cache=use_cache)
                torch.testing.assert_close(found, logits(model))


def test_a_mask_that_leaves_out_the_cache_is_refused() -> None:
    model = build(tiny())
    cache = model(input_ids=SOURCE, decoder_input_ids=TARGET[:, :3], use_cache=True).past_key_values
    rest: dict[str, Any] = {"decoder_input_ids": TARGET[:, 3:], "past_key_values": cache}
    with pytest.raises(ValueError, match=r"has 2 columns, and the cache holds 3 tokens before these 2: .* all 5"):
        logits(model, decoder_attention_mask=torch.ones(2, 2).long(), **rest)
    found = logits(model, decoder_attention_mask=torch.ones(2, 5).long(), **rest)
    torch.testing.assert_close(found, logits(model)[:, 3:])


@pytest.mark.parametrize("scheme", ["learned", "rotary"])
def test_a_mask_that_does_not_tell_places_is_refused(scheme: str) -> None:
    model = build(tiny(position_encoding=scheme))
    blocks, places = block_diagonal()
    found = logits(model, decoder_attention_mask=blocks, decoder_position_ids=places)
    torch.testing.assert_close(found[:, :3], logits(model)[:, :3])
    torch.testing.assert_close(found[:, 3:], logits(model, decoder_input_ids=TARGET[:, 3:]))
    for mask in (blocks, blocks.long(), torch.zeros(blocks.shape).masked_fill(~blocks, -1e9)):
        with pytest.raises(ValueError, match="does not tell where they stand: pass decoder_position_ids"):
            logits(model, decoder_attention_mask=mask)
    causal = torch.ones(5, 5).tril().bool().expand(2, 1, -1, -1)
    torch.testing.assert_close(logits(model, decoder_attention_mask=causal.long()), logits(model))
