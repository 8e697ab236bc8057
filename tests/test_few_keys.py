"""Training on short sequences on the CPU: the kernel that is quicker, and the same attention."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from dragoman.modeling import few_keys
from dragoman.modeling.attention import Attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dragoman import DragomanConfig

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GROUPED = {"encoder_num_attention_heads": 4, "encoder_num_key_value_heads": 2}


def layer(dtype: torch.dtype) -> Attention:
    torch.manual_seed(0)
    config = DragomanConfig(hidden_size=32, **GROUPED)  # type: ignore[arg-type]
    config._attn_implementation = "sdpa"
    attention = Attention(config, 4, 2, layer_idx=0, is_causal=False).to(dtype)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return attention


def inputs(keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, source = (torch.randn(3, length, 32, generator=generator).to(dtype) for length in (5, keys))
    mask = torch.arange(keys) < torch.tensor([keys, keys - 1, 2])[:, None]
    return x, source, mask[:, None, None]


def kernel(output: Tensor) -> str:
    """The step of autograd that SDPA left behind."""
    steps, names = [output.grad_fn], []
    while steps:
        step: Any = steps.pop()
        names.append(type(step).__name__)
        steps += [following for following, _ in step.next_functions if following is not None]
    return "kernel" if any("FlashAttention" in name for name in names) else "products"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_up_to_a_number_of_keys(dtype: torch.dtype) -> None:
    limit = few_keys.FEW[dtype]
    for keys, expected in ((2, "products"), (limit, "products"), (limit + 1, "kernel")):
        x, source, mask = inputs(keys, dtype)
        assert kernel(layer(dtype)(x, source, mask=mask)[0]) == expected
        assert kernel(layer(dtype)(x, source, mask=None)[0]) == expected


def test_float64_and_what_does_not_train_are_left_alone() -> None:
    x, source, mask = inputs(4, torch.float64)
    assert kernel(layer(torch.float64)(x, source, mask=mask)[0]) == "kernel"
    q = torch.randn(1, 1, 4, 8)
    assert isinstance(few_keys.choose_kernel(q, q), nullcontext)
    with torch.no_grad():
        assert isinstance(few_keys.choose_kernel(q.requires_grad_(), q), nullcontext)
    assert not isinstance(few_keys.choose_kernel(q.detach(), q), nullcontext)  # a prefix that trains
    assert isinstance(few_keys.choose_kernel(q.to("meta"), q.to("meta")), nullcontext)


def test_who_asks_for_the_kernel_gets_it() -> None:
    x, source, mask = inputs(4, torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # its name in torch on the CPU, too
        assert kernel(layer(torch.bfloat16)(x, source, mask=mask)[0]) == "kernel"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_attention_and_gradients(dtype: torch.dtype) -> None:
    """As near to float64 as the kernel is."""

    def run(dtype: torch.dtype, by: Any) -> list[Tensor]:
        attention = layer(torch.float64).to(DTYPES[1]).to(dtype)  # weights that each can hold
        x, source, mask = inputs(9, DTYPES[1])
        x, source = x.to(dtype).requires_grad_(), source.to(dtype).requires_grad_()
        with by:
            output = attention(x, source, mask=mask)[0]
        return [output.double(), *(g.double() for g in torch.autograd.grad(output.sin().sum(), [x, source]))]

    expected = run(torch.float64, nullcontext())
    by_products, by_kernel = run(dtype, nullcontext()), run(dtype, sdpa_kernel(SDPBackend.FLASH_ATTENTION))
    for reference, products, others in zip(expected, by_products, by_kernel, strict=True):
        least = torch.finfo(dtype).eps * reference.norm()
        assert (products - reference).norm() <= 1.5 * (others - reference).norm() + least
