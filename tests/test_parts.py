"""Each part against its formula, written out by hand in float64, or against another library."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from dragoman.configuration import presets
from dragoman.modeling.attention import Attention, dense_mask, eager_attention
from dragoman.modeling.building import build_input_embedding, build_rotary, build_token_embedding
from dragoman.modeling.feed_forward import FeedForward
from dragoman.modeling.loss import token_cross_entropy
from dragoman.modeling.norms import LayerNorm, RMSNorm
from dragoman.modeling.position_biases import AlibiBias, RelativeBias, alibi_slopes, relative_buckets
from dragoman.modeling.position_encodings import (
    LearnedPositions,
    SinusoidalPositions,
    apply_rotary,
    positions_of,
)
from dragoman.modeling.residual import Residual
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import BartConfig, DynamicCache, EncoderDecoderCache, T5Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.t5.modeling_t5 import T5Attention

torch.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def filled(module: nn.Module) -> Any:
    """In float64, with every parameter drawn."""
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


class TestNorms:
    def test_layer_norm(self) -> None:
        norm, x = filled(LayerNorm(8, 1e-5)), normal(2, 3, 8) * 5 + 3
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        torch.testing.assert_close(norm(x), (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias)
        assert LayerNorm(8, 1e-5, bias=False).bias is None

    @pytest.mark.parametrize("eps", [1e-6, 0.5])
    def test_rms_norm(self, eps: float) -> None:
        norm, x = filled(RMSNorm(8, eps)), normal(2, 3, 8)
        torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight)


class TestFeedForward:
    def test_plain_and_gated(self) -> None:
        x = normal(2, 3, 6)
        plain = filled(FeedForward(6, 10, "relu", gated=False, bias=True, dropout=0.0))
        hidden = (x @ plain.up_proj.weight.T + plain.up_proj.bias).clamp(min=0)
        torch.testing.assert_close(plain(x), hidden @ plain.down_proj.weight.T + plain.down_proj.bias)
        gated = filled(FeedForward(6, 10, "silu", gated=True, bias=False, dropout=0.0))
        gate = x @ gated.gate_proj.weight.T
        hidden = gate / (1 + (-gate).exp()) * (x @ gated.up_proj.weight.T)
        torch.testing.assert_close(gated(x), hidden @ gated.down_proj.weight.T)


def test_residual_placements() -> None:
    norm, x = filled(LayerNorm(8, 1e-5)), normal(2, 3, 8)
    torch.testing.assert_close(Residual(norm, "pre", 0.0)(x, torch.sin), x + norm(x).sin())
    torch.testing.assert_close(Residual(norm, "post", 0.0)(x, torch.sin), norm(x + x.sin()))


class TestPositions:
    def test_positions_count_tokens(self) -> None:
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0]])
        expected = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 2, 2]]
        assert positions_of(mask, 5, mask.device).tolist() == expected
        causal = torch.ones(5, 5, dtype=torch.bool).tril() & mask[:, None, None].bool()
        assert positions_of(causal, 5, mask.device).tolist() == expected
        assert positions_of(causal.long(), 5, mask.device).tolist() == expected
        additive = torch.where(causal, 0.0, -1e9)
        assert positions_of(additive, 5, mask.device).tolist() == expected

    def test_sinusoids(self) -> None:
        size, positions = 10, torch.tensor([[0, 1, 63], [5, 5, 2]])
        found = SinusoidalPositions(64, size)(positions)
        for b, t, i in np.ndindex(2, 3, size):
            angle = positions[b, t].item() / 10000 ** (2 * (i % 5) / size)
            expected = math.sin(angle) if i < 5 else math.cos(angle)
            assert found[b, t, i].item() == pytest.approx(expected, abs=1e-6)

    def test_sinusoids_to_the_endpoint_from_an_offset(self) -> None:
        """fairseq's: the lowest frequency is 1/10000 exactly."""
        found = SinusoidalPositions(30, 10, offset=2, endpoint=True)(torch.tensor([[0, 1, 29]]))
        for t, position in enumerate((2, 3, 31)):
            angles = [position / 10000 ** (i / 4) for i in range(5)]
            expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            torch.testing.assert_close(found[0, t], torch.tensor(expected), atol=1e-5, rtol=0)

    def test_learned_positions_begin_at_the_offset(self) -> None:
        table = filled(LearnedPositions(6, 4, offset=2))
        torch.testing.assert_close(table(torch.tensor([[0, 5]])), table.weight[[2, 7]][None])

    @pytest.mark.parametrize("scheme", ["sinusoidal", "learned"])
    def test_input_embedding_adds_them_before_the_norm(self, scheme: str) -> None:
        config = presets.tiny(position_encoding=scheme, embedding_norm=True)
        embedding = filled(build_input_embedding(config, "decoder"))
        x, positions = normal(2, 3, 64), torch.tensor([[0, 1, 2], [4, 4, 9]])
        expected = embedding.norm(x + embedding.positions(positions))
        torch.testing.assert_close(embedding(x, positions, 10, "source"), expected)

    def test_the_decoder_may_add_them_after_the_norm(self) -> None:
        config = presets.tiny(position_encoding="learned", embedding_norm=True, norm_before_positions=True)
        encoder, decoder = (filled(build_input_embedding(config, side)) for side in ("encoder", "decoder"))
        x, positions = normal(2, 3, 64), torch.tensor([[0, 1, 2], [4, 4, 9]])
        torch.testing.assert_close(decoder(x, positions, 10, "target"), decoder.norm(x) + decoder.positions(positions))
        torch.testing.assert_close(encoder(x, positions, 10, "source"), encoder.norm(x + encoder.positions(positions)))

    def test_a_norm_that_comes_first_sees_token_vectors_without_scale(self) -> None:
        config = presets.tiny(position_encoding="learned", embedding_norm=True, scale_embedding=True)
        assert [build_token_embedding(config, side).scale for side in ("encoder", "decoder")] == [8, 8]
        config.norm_before_positions = True
        assert [build_token_embedding(config, side).scale for side in ("encoder", "decoder")] == [8, 1]

    def test_rotary_turns_pairs(self) -> None:
        config = presets.tiny(rope_parameters={"rope_theta": 100.0})
        x, positions = normal(2, 4, 3, 16), torch.tensor([[0, 1, 7], [4, 4, 9]])
        turned = apply_rotary(x, build_rotary(config, "decoder")(positions, x.dtype))
        pairs = torch.complex(x[..., :8], x[..., 8:])
        angles = positions[:, None, :, None] * 100.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
        expected = pairs * torch.polar(torch.ones_like(angles), angles)
        torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1), rtol=1e-5, atol=1e-5)

    def test_rotary_scores_know_distance_only(self) -> None:
        rotary = build_rotary(presets.tiny(), "encoder")
        q, k = normal(1, 1, 1, 16), normal(1, 1, 1, 16)

        def score(p: int, q_: int) -> Tensor:
            return apply_rotary(q, rotary(torch.tensor([[p]]), q.dtype)) @ apply_rotary(
                k, rotary(torch.tensor([[q_]]), q.dtype)
            ).transpose(2, 3)

        torch.testing.assert_close(score(9, 4), score(205, 200), rtol=1e-4, atol=1e-5)
        assert (score(9, 4) - score(9, 5)).abs() > 1e-3

    def test_frequencies_stay_exact_in_a_half_precision_model(self) -> None:
        rotary = build_rotary(presets.tiny(), "decoder")
        exact, positions = rotary.inv_freq.clone(), torch.tensor([[900]])
        expected = rotary(positions, torch.float32)
        rotary.to(torch.bfloat16)
        torch.testing.assert_close(rotary.inv_freq, exact, rtol=0, atol=0)
        torch.testing.assert_close(rotary(positions, torch.float32), expected, rtol=0, atol=0)

    @pytest.mark.parametrize(
        "scaling",
        [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0},
         {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}],
        ids=lambda s: s["rope_type"],
    )  # fmt: skip
    def test_scaled_rotary_is_that_of_transformers(self, scaling: dict[str, Any]) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 32, **scaling}
        ours = build_rotary(presets.tiny(rope_parameters=dict(rope)), "decoder")
        llama = LlamaConfig(
            hidden_size=64, num_attention_heads=4, rope_parameters=dict(rope), max_position_embeddings=1024
        )
        positions, x = torch.arange(50)[None], torch.zeros(1)
        for found, expected in zip(ours(positions, x.dtype), LlamaRotaryEmbedding(llama)(x, positions), strict=True):
            torch.testing.assert_close(found[:, 0], expected)


class TestBiases:
    def test_alibi(self) -> None:
        assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
        torch.testing.assert_close(alibi_slopes(3), torch.tensor([2.0**-4, 2.0**-8, 2.0**-2]))
        bias = AlibiBias(4)(torch.tensor([[3]]), torch.tensor([[0, 3, 5]]))
        slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
        torch.testing.assert_close(bias[0, :, 0], -slopes[:, None] * torch.tensor([3.0, 0.0, 2.0]))

    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_buckets_are_those_of_t5(self, bidirectional: bool) -> None:
        distance = torch.arange(-300, 301)
        for buckets, furthest in ((32, 128), (8, 20), (4, 3), (5, 9), (6, 4), (7, 30), (31, 16)):
            found = relative_buckets(distance, buckets, furthest, bidirectional)
            expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, furthest)
            assert found.tolist() == expected.tolist()
            assert set(range(buckets)) >= set(found.tolist())

    def test_relative_bias_is_per_head(self) -> None:
        bias = filled(RelativeBias(3, 8, 20, bidirectional=True))
        found = bias(torch.tensor([[2, 7]]), torch.tensor([[0, 2, 3]]))
        assert found.shape == (1, 3, 2, 3)
        bucket = relative_buckets(torch.tensor(3 - 7), 8, 20, True)
        torch.testing.assert_close(found[0, :, 1, 2], bias.weight[bucket])


def naive_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor, bias: Tensor) -> Tensor:
    """One query, one head, one key at a time."""
    output = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype)
    for b, h, t in np.ndindex(*q.shape[:3]):
        group = h // (q.shape[1] // k.shape[1])
        weights = [
            math.exp(float(q[b, h, t] @ k[b, group, s]) * scale + float(bias[b, h, t, s])) * float(allowed[b, t, s])
            for s in range(k.shape[2])
        ]
        for s, weight in enumerate(weights):
            output[b, t, h] += weight / sum(weights) * v[b, group, s]
    return output


class TestAttention:
    @pytest.mark.parametrize("groups", [4, 2, 1])
    def test_formula(self, groups: int) -> None:
        q, k, v, bias = normal(2, 4, 3, 5), normal(2, groups, 6, 5), normal(2, groups, 6, 5), normal(2, 4, 3, 6)
        allowed = torch.rand(2, 3, 6) > 0.4
        allowed[..., 0] = True
        output, weights = eager_attention(nn.Module(), q, k, v, allowed[:, None], scaling=0.7, position_bias=bias)
        torch.testing.assert_close(output, naive_attention(q, k, v, 0.7, allowed, bias))
        assert (weights[~allowed[:, None].expand_as(weights)] == 0).all()

    @pytest.mark.parametrize("cross", [True, False])
    def test_equals_bart(self, cross: bool) -> None:
        config = presets.tiny(hidden_size=32, attention_bias=True, position_encoding="none")
        ours = filled(Attention(config, 4, 4, 0, is_causal=False))
        theirs = BartAttention(32, 4, config=BartConfig(d_model=32, attn_implementation="eager")).double()
        renamed = {name.replace("o_proj", "out_proj"): value for name, value in ours.state_dict().items()}
        theirs.load_state_dict(renamed)
        x, source = normal(2, 5, 32), normal(2, 7, 32)
        expected = theirs(x, key_value_states=source if cross else None)[0]
        torch.testing.assert_close(ours(x, source if cross else None, mask=None)[0], expected)

    def test_equals_t5_with_its_bias_and_scale(self) -> None:
        config = presets.tiny(hidden_size=32, attention_scale=1.0, position_encoding="none", head_dim=6)
        ours, bias = filled(Attention(config, 4, 4, 0, is_causal=False)), filled(RelativeBias(4, 8, 20, True))
        sizes = {"d_model": 32, "num_heads": 4, "d_kv": 6, "dropout_rate": 0.0}
        t5 = T5Config(**sizes, relative_attention_num_buckets=8, relative_attention_max_distance=20)
        theirs = T5Attention(t5, has_relative_attention_bias=True).double()
        names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
        for name, other in names.items():
            getattr(theirs, other).weight.data.copy_(getattr(ours, name).weight)
        theirs.relative_attention_bias.weight.data.copy_(bias.weight)
        x, positions = normal(2, 9, 32), torch.arange(9)[None]
        expected = theirs(x)[0]
        found = ours(x, mask=None, position_bias=bias(positions, positions))[0]
        torch.testing.assert_close(found, expected)

    def test_weights_beside_flash_attention_that_goes_on_with_a_cache(self) -> None:
        """It is given no mask where nothing is padded, and takes the queries for the last tokens."""
        config = presets.tiny(hidden_size=32, position_encoding="none")
        attention = filled(Attention(config, 4, 4, 0, is_causal=True))
        x, causal = normal(2, 8, 32), torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        expected = attention(x, mask=causal, output_attentions=True)[1][:, :, 5:]
        ALL_ATTENTION_FUNCTIONS.register("flash_for_a_test", lambda _, query, *__, **___: (query.transpose(1, 2), None))
        config._attn_implementation = "flash_for_a_test"
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        attention(x[:, :5], mask=None, cache=cache)
        found = attention(x[:, 5:], mask=None, cache=cache, output_attentions=True)[1]
        torch.testing.assert_close(found, expected)

    def test_masks_of_any_form_become_dense(self) -> None:
        device, real = torch.device("cpu"), torch.tensor([[1, 1, 0], [0, 1, 1]])
        assert dense_mask(None, False, 2, 3, device) is None
        lower = [[True, False, False], [True, True, False], [True, True, True]]
        assert dense_mask(None, True, 3, 3, device)[0, 0].tolist() == lower
        assert dense_mask(None, True, 1, 3, device).all()  # one query, all of a cache
        last = dense_mask(None, True, 2, 3, device, at_the_end=True)  # flash attention, where nothing is padded
        assert last[0, 0].tolist() == lower[1:]
        two = dense_mask(real, True, 2, 3, device)  # flash attention: aligned at the end, padding dropped
        assert two[:, 0].tolist() == [[[True, True, False]] * 2, [[False, True, False], [False, True, True]]]
        block = create_block_mask(lambda b, h, q, k: q >= k, 2, None, 3, 3, device="cpu")
        assert dense_mask(block, True, 3, 3, device)[1, 0].tolist() == lower


class TestLoss:
    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    def test_formula(self, smoothing: float) -> None:
        logits, labels = normal(2, 3, 5) * 3, torch.tensor([[1, 4, -100], [0, -100, -100]])
        expected = 0.0
        for b, t in ((0, 0), (0, 1), (1, 0)):
            log_probs = logits[b, t] - logits[b, t].exp().sum().log()
            expected -= float((1 - smoothing) * log_probs[labels[b, t]] + smoothing * log_probs.mean())
        found = token_cross_entropy(logits, labels, label_smoothing=smoothing)
        assert found.item() == pytest.approx(expected / 3, rel=1e-12)
        for count in (7, torch.tensor(7)):
            assert token_cross_entropy(logits, labels, count, smoothing).item() == pytest.approx(
                expected / 7, rel=1e-12
            )

    def test_labels_of_any_integer(self) -> None:
        logits, labels = torch.randn(2, 3, 8), torch.tensor([[1, 2, -100], [7, 0, 3]])
        expected = token_cross_entropy(logits, labels)
        torch.testing.assert_close(token_cross_entropy(logits, labels.int()), expected, rtol=0, atol=0)

    def test_half_precision_is_summed_in_fp32(self) -> None:
        logits, labels = torch.randn(1, 4096, 8).bfloat16(), torch.randint(8, (1, 4096))
        expected = token_cross_entropy(logits.double(), labels)
        assert token_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
