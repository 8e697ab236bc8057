"""Numbers stay right where they are large, half precision or deep: statistics in fp32, and weights scaled by depth."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling.attention import Attention, eager_attention
from dragoman.modeling.encoder import EncoderLayer
from dragoman.modeling.norms import LayerNorm, RMSNorm
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import stability
from copy_task import BLIND, sequences
from deep_stacks import STACKS, VARIANTS, Placement, deep, train, undo_depth_scaling
from dragoman import DragomanForConditionalGeneration
from support import OPTIONS, batch, build, describe, pairwise, relative_error, tiny

HALVES = [torch.float16, torch.bfloat16]


def error_in_units(found: Tensor, exact: Tensor) -> float:
    """Relative error in units of the dtype's last place. What is computed exactly and rounded once has 0.2 to 0.3."""
    return relative_error(found.double(), exact) / torch.finfo(found.dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
class TestStatisticsAreTakenInFp32:
    @pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
    @pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (300.0, 0.0), (1.0, 300.0), (300.0, 3000.0)])
    def test_norms(self, kind: Any, dtype: torch.dtype, scale: float, offset: float) -> None:
        """Squares of 300 overflow fp16, and a mean of 300 rounded to half precision is off by a good part of 1."""
        torch.manual_seed(0)
        norm = kind(512, 1e-5)
        nn.init.normal_(norm.weight)
        norm.to(dtype)
        x = (scale * torch.randn(64, 512) + offset).to(dtype).requires_grad_()
        gradient = torch.randn(64, 512).to(dtype)
        found = norm(x)
        (found_gradient,) = torch.autograd.grad(found, x, gradient)
        norm.double()
        x = x.detach().double().requires_grad_()
        centred = x if kind is RMSNorm else x - x.mean(-1, keepdim=True)
        exact = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        (exact_gradient,) = torch.autograd.grad(exact, x, gradient.double())
        assert found.dtype == dtype
        assert error_in_units(found, exact) < 0.3
        if offset <= 10 * scale:  # beyond, the mean that torch's CPU kernel keeps in x's dtype is too coarse
            assert error_in_units(found_gradient, exact_gradient) < 0.5

    @pytest.mark.parametrize("path", ["eager", "eager in autocast", "sdpa"])
    @pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (10.0, 0.0), (1.0, 30.0), (1.0, 40.0)])
    def test_attention(self, path: str, dtype: torch.dtype, scale: float, offset: float) -> None:
        """Products around 64 · 30² = 57,600 differ by less than a half-precision step; those of 40² overflow fp16."""
        torch.manual_seed(0)
        layer = Attention(tiny(hidden_size=256), num_heads=4, num_key_value_heads=2, layer_idx=0, is_causal=False)
        q, k, v = (torch.randn(3, heads, 9, 64) for heads in (4, 2, 2))
        inputs = [x.to(dtype).requires_grad_() for x in (scale * q + offset, scale * k + offset, v)]
        mask = torch.rand(3, 1, 9, 9) > 0.3
        gradient = torch.randn(3, 9, 4, 64).to(dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(path.split()[0], eager_attention)
        with torch.autocast("cpu", dtype=dtype, enabled="autocast" in path):
            found, found_weights = attend(layer, *inputs, mask, scaling=layer.scaling)
        found_gradients = torch.autograd.grad(found, inputs, gradient)

        exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
        q, k, v = (x.repeat_interleave(4 // x.shape[1], dim=1) for x in exact_inputs)
        scores = q @ k.mT / 8
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        exact = (weights @ v).transpose(1, 2)
        exact_gradients = torch.autograd.grad(exact, exact_inputs, gradient.double())
        assert error_in_units(found, exact) < 0.5
        if found_weights is not None:
            assert error_in_units(found_weights, weights) < 0.5
        if path != "sdpa":  # whose backward pass, torch's own, rounds more
            # A weight is off by as much as its score in fp32, whose sum rounds in another order on every processor.
            rounding = scores.abs().max() * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps  # up to 1.6 units
            for found_gradient, exact_gradient in zip(found_gradients, exact_gradients, strict=True):
                assert error_in_units(found_gradient, exact_gradient) < 1.0 + 2 * rounding


def test_an_overflow_is_seen() -> None:
    """Never clamped away: by the infinity in its gradients fp16 training knows that it has to scale the loss down."""
    layer = EncoderLayer(tiny(norm_placement="pre", position_encoding="none"), layer_idx=0).half()
    nn.init.constant_(layer.feed_forward.down_proj.bias, 100.0)
    largest = torch.finfo(torch.float16).max
    for start, finite in ((largest - 500, True), (largest, False)):
        x = torch.full((1, 3, 32), start, dtype=torch.float16)
        y, _ = layer(x, None, torch.arange(3)[None])
        assert y.isfinite().all() == finite


STRESSED = pairwise(
    {name: OPTIONS[name] for name in ("position_encoding", "norm_type", "norm_placement", "gated_feed_forward")}
    | {"attn_implementation": ("eager", "sdpa")}
)


def states_and_gradients(
    model: DragomanForConditionalGeneration, vectors: dict[str, Tensor], inputs: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, the states of every layer, and the gradients for all parameters and both inputs."""
    dtype = model.lm_head.weight.dtype
    vectors = {name: x.detach().to(dtype).requires_grad_() for name, x in vectors.items()}
    outputs = model(**vectors, **inputs, output_hidden_states=True)
    wanted = [*model.parameters(), *vectors.values()]
    gradients = torch.autograd.grad(outputs.loss, wanted, allow_unused=True)
    states = [*outputs.encoder_hidden_states, *outputs.decoder_hidden_states]
    return outputs.loss, states, [g for g in gradients if g is not None]


@pytest.mark.parametrize("options", STRESSED, ids=describe)
@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float16, 0.005, 0.03), (torch.bfloat16, 0.04, 0.2)])
def test_half_precision_under_stress(
    options: dict[str, Any], dtype: torch.dtype, forward: float, backward: float
) -> None:
    """24+24 layers with sharp attention, inputs ten times as large as trained ones: what float64 computes, nearly."""
    fields = dict(options)
    implementation = fields.pop("attn_implementation")
    config = tiny(encoder_num_hidden_layers=24, decoder_num_hidden_layers=24, hidden_act="silu", **fields)
    model = build(config, attn_implementation=implementation).to(dtype).train()
    inputs = batch(config)
    ids = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    embed = model.get_input_embeddings()
    vectors = {"inputs_embeds": 10 * embed(inputs.pop("input_ids")), "decoder_inputs_embeds": 10 * embed(ids)}
    loss, states, gradients = states_and_gradients(model, vectors, inputs)
    for tensor in (loss, *states, *gradients):
        assert tensor.isfinite().all()

    expected_loss, expected_states, expected = states_and_gradients(copy.deepcopy(model).double(), vectors, inputs)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.01)
    real = {True: inputs["attention_mask"].bool(), False: inputs["labels"] != -100}
    for i, (state, exact) in enumerate(zip(states, expected_states, strict=True)):
        rows = real[i < len(states) // 2]
        assert relative_error(state[rows].double(), exact[rows]) < forward, i
    whole, exact = (torch.cat([g.double().flatten() for g in side]) for side in (gradients, expected))
    assert relative_error(whole, exact) < backward


def growth(model: DragomanForConditionalGeneration) -> dict[str, float]:
    """By how much the stream's variance and a layer's gradient norm differ between the ends of a stack, as a factor."""
    ids, _ = sequences(32, torch.Generator().manual_seed(1))
    outputs = model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100), output_hidden_states=True)
    outputs.loss.backward()
    factors = {}
    for side in ("encoder", "decoder"):
        states, layers = outputs[f"{side}_hidden_states"], getattr(model.model, side).layers
        first, last = (torch.nn.utils.get_total_norm([p.grad for p in layers[i].parameters()]) for i in (0, -1))
        factors[f"{side} variance"] = float(
            (states[-2].var() / states[0].var()).detach()
        )  # -1 is behind the final norm
        factors[f"{side} gradient"] = float(first / last)
    return factors


@pytest.mark.parametrize(("layers", "placement", "grows"), [(48, "pre", "variance"), (24, "post", "gradient")])
@pytest.mark.parametrize("modern", [False, True])
def test_depth_changes_little_at_the_start(layers: int, placement: Placement, grows: str, modern: bool) -> None:
    """The sum of a stack's branches has unit size: stream and gradient are of one size from end to end.

    Without the depth in a branch's weights the pre-norm stream grows, and the post-norm decoder's gradient vanishes.
    """
    options = {"norm_type": "rms_norm", "gated_feed_forward": True, "hidden_act": "silu", "position_encoding": "rotary"}
    model = deep(layers, placement, **(options if modern else {}))
    for name, factor in growth(model).items():
        assert 0.5 < factor < 2, f"{name}: {factor:.3g}"
    model.zero_grad()
    undo_depth_scaling(model)
    factors = growth(model)
    assert max(abs(math.log10(factors[f"{side} {grows}"])) for side in ("encoder", "decoder")) > 1.5, factors


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "placement"), STACKS)
def test_deep_stacks_train(layers: int, placement: Placement) -> None:
    losses = train(deep(layers, placement), steps=150)
    assert all(math.isfinite(loss) for loss in losses)
    assert len(losses) == 150
    assert max(losses[-20:]) < 0.95 * BLIND, losses[::10]  # it looks at the source


@pytest.mark.slow
def test_the_benchmark_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "STACKS", ((2, "pre"), (2, "post")))
    monkeypatch.setattr("sys.argv", ["stability.py", "--steps", "8", "--processes", "1", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="as it is did not learn"):
        stability.main()
    report = (tmp_path / "stability.md").read_text("utf-8")
    for variant in VARIANTS:
        assert f"| 2+2 post-norm | {variant} |" in report
    assert len((tmp_path / "stability.csv").read_text("utf-8").splitlines()) == 3  # the names, steps 0 and 4
    assert (tmp_path / "images" / "stability.png").stat().st_size > 10_000
