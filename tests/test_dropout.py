"""Dropout: how much is dropped, that nothing but the mask decides, and what is kept for the gradient."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from modeling.dropout import Dropout


def dropout(p: float) -> Dropout:
    return Dropout(p).train()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999, 1e-3])
def test_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(3001, 1003, dtype=torch.float64)  # no multiple of four
    y = dropout(p)(x)
    share = float((y == 0).double().mean())
    assert abs(share - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - int(p * 2**16) / 2**16)))
    assert abs(float(y.mean()) - 1) < 5 * (p / (1 - p) / x.numel()) ** 0.5


def test_elements_are_dropped_independently() -> None:
    """Also those that share a random number."""
    torch.manual_seed(0)
    dropped = (dropout(0.3)(torch.ones(2_000_000)) == 0).double()
    for distance in (1, 2, 3, 4, 5, 8):
        both = float((dropped[distance:] * dropped[:-distance]).mean())
        assert abs(both - 0.09) < 0.0015, distance
    once, again = (dropout(0.3)(torch.ones(1_000_000)) == 0 for _ in range(2))
    assert abs(float((once & again).double().mean()) - 0.09) < 0.0015


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, 3, dtype=dtype).transpose(0, 1).requires_grad_()
    y = dropout(0.5)(x)
    assert y.dtype == dtype
    upstream = torch.randn(7, 5, 3, dtype=dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    keep = (y != 0).to(dtype)
    assert 0 < keep.sum() < keep.numel()
    assert_close(y, x * keep * 2)
    assert_close(gradient, upstream * keep * 2)


def test_seed_and_recomputation() -> None:
    layer, x = dropout(0.4), torch.randn(9, 5, requires_grad=True)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert_close(layer(x), first, rtol=0, atol=0)
    torch.manual_seed(3)
    recomputed = checkpoint(lambda x: layer(x).square(), x, use_reentrant=False)
    assert_close(torch.autograd.grad(recomputed.sum(), x), torch.autograd.grad(first.square().sum(), x))


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_ends_of_the_range(p: float) -> None:
    assert_close(dropout(p)(torch.ones(50)), torch.full((50,), 0.0 if p == 1 else 1.0))


def test_nothing_happens_outside_training() -> None:
    x = torch.randn(4, 6)
    assert Dropout(0.9).eval()(x) is x
    assert dropout(0.9)(torch.empty(0, 6)).shape == (0, 6)


def test_the_mask_takes_a_byte_an_element() -> None:
    kept: list[Tensor] = []
    x = torch.randn(64, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        dropout(0.1)(x)
    assert [t.nbytes for t in kept if t.dim()] == [64 * 32]


def test_compiled_and_on_other_devices_it_is_torchs_own() -> None:
    assert dropout(0.5)(torch.ones(3, device="meta")).shape == (3,)
    layer = torch.compile(dropout(0.5), fullgraph=True, backend="eager")
    torch.manual_seed(0)
    found = layer(torch.ones(100))
    torch.manual_seed(0)
    assert_close(found, torch.nn.functional.dropout(torch.ones(100), 0.5))
