"""The linear layer by either kernel: one result, one gradient, and every case that oneDNN is not for."""

from typing import Any

import pytest
import torch
from dragoman.modeling import linear
from dragoman.modeling.linear import HAS_ONEDNN, Linear, is_worth_onednn
from torch import Tensor, nn
from torch.nn import functional as F

from dragoman import DragomanForConditionalGeneration
from support import batch, build, gradients, relative_error, tiny

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")


@pytest.fixture
def everything_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "WORTH", 0)


@pytest.mark.usefixtures("everything_is_worth_it")
class TestOneDNN:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(3, 5, 8), (7, 8), (1, 1, 8)])
    def test_against_float64(self, shape: tuple[int, ...], bias: bool) -> None:
        torch.manual_seed(0)
        layer, x = Linear(8, 6, bias=bias), torch.randn(shape, requires_grad=True)
        wide = nn.Linear(8, 6, bias=bias).double()
        wide.load_state_dict(layer.state_dict())
        x_wide = x.detach().double().requires_grad_()
        weights = torch.randn(*shape[:-1], 6)
        found, expected = layer(x), wide(x_wide)
        assert type(found.grad_fn).__name__ == "_ProductBackward"
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(x.grad.double(), x_wide.grad, atol=1e-5, rtol=1e-5)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(
                parameter.grad.double(), wide.get_parameter(name).grad, atol=1e-5, rtol=1e-5, msg=name
            )
        with torch.no_grad():
            torch.testing.assert_close(layer(x), found, rtol=0, atol=0)

    @pytest.mark.parametrize("layout", ["transposed", "expanded", "strided"])
    def test_any_layout(self, layout: str) -> None:
        layer = Linear(8, 6)
        x = {
            "transposed": torch.randn(8, 5).T,
            "expanded": torch.randn(1, 8).expand(5, 8),
            "strided": torch.randn(5, 16)[:, ::2],
        }[layout].requires_grad_()
        expected = F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected)
        gradient = torch.randn(6, 5).T  # of another layout, too
        found = torch.autograd.grad(layer(x), (x, layer.weight), gradient)
        torch.testing.assert_close(found, torch.autograd.grad(expected, (x, layer.weight), gradient))

    def test_only_what_is_asked_for(self) -> None:
        layer = Linear(8, 6)
        layer.weight.requires_grad_(False)
        layer(torch.randn(4, 8)).sum().backward()
        assert layer.weight.grad is None
        torch.testing.assert_close(layer.bias.grad, torch.full((6,), 4.0))

    def test_a_gradient_of_the_gradient(self) -> None:
        layer, x = Linear(8, 6), torch.randn(4, 8, requires_grad=True)

        def penalty(call: Any) -> tuple[Tensor, ...]:
            (gradient,) = torch.autograd.grad(call(x).tanh().sum(), x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), (x, layer.weight))

        torch.testing.assert_close(penalty(layer), penalty(lambda x: F.linear(x, layer.weight, layer.bias)))

    def test_the_whole_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loss, logits and gradients, against MKL; checkpointing runs the layers twice."""
        model, inputs = build(tiny(gated_feed_forward=True, attention_bias=True)).train(), batch(tiny())
        found = gradients(model, **inputs)
        model.gradient_checkpointing_enable()
        again = gradients(model, **inputs)
        model.gradient_checkpointing_disable()
        logits = model.eval()(**inputs).logits
        monkeypatch.setattr(linear, "HAS_ONEDNN", False)
        expected = gradients(model.train(), **inputs)
        assert relative_error(logits, model.eval()(**inputs).logits) < 1e-5
        for name, gradient in expected.items():
            assert relative_error(found[name], gradient) < 1e-5, name
            assert relative_error(again[name], gradient) < 1e-5, name

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes_are_torchs(self, dtype: torch.dtype) -> None:
        layer, x = Linear(8, 6).to(dtype), torch.randn(4, 8, dtype=dtype)
        assert not is_worth_onednn(x, layer.weight)
        assert layer(x).dtype == dtype

    def test_autocast_is_torchs(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert Linear(8, 6)(torch.randn(4, 8)).dtype == torch.bfloat16

    def test_compiled_and_exported(self) -> None:
        layer, x = Linear(8, 6), torch.randn(4, 8)
        exported = torch.export.export(layer, (x,)).module()
        torch.testing.assert_close(exported(x), layer(x))
        assert torch.compile(layer, backend="eager", fullgraph=True)(x).shape == (4, 6)

    def test_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            assert Linear(8, 6)(torch.randn(4, 8)).shape == (4, 6)


def test_small_products_are_torchs() -> None:
    assert not is_worth_onednn(torch.randn(16, 64), torch.randn(64, 64))
    assert is_worth_onednn(torch.randn(256, 256), torch.randn(256, 256))


def test_adapters_and_heads_know_it() -> None:
    """What asks for an ``nn.Linear`` finds one."""
    model = build(tiny())
    assert isinstance(model, DragomanForConditionalGeneration)
    assert all(
        isinstance(module, nn.Linear) for module in (model.lm_head, model.model.encoder.layers[0].self_attn.q_proj)
    )
