"""Training in bfloat16 on the CPU: the formula where it is quicker, and the same attention."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from dragoman.modeling.attention import Attention
from dragoman.modeling.few_keys import FEW, trains_on_few_keys
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dragoman import DragomanConfig

GROUPED = {"encoder_num_attention_heads": 4, "encoder_num_key_value_heads": 2}


def layer(dtype: torch.dtype, causal: bool = False) -> Attention:
    torch.manual_seed(0)
    config = DragomanConfig(hidden_size=32, **GROUPED)  # type: ignore[arg-type]
    config._attn_implementation = "sdpa"
    attention = Attention(config, 4, 2, layer_idx=0, is_causal=causal).to(dtype)
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
    return "kernel" if any("FlashAttention" in name for name in names) else "formula"


def test_the_formula_up_to_a_number_of_keys() -> None:
    attention = layer(torch.bfloat16)
    for keys, expected in ((2, "formula"), (FEW, "formula"), (FEW + 1, "kernel")):
        x, source, mask = inputs(keys, torch.bfloat16)
        assert kernel(attention(x, source, mask=mask)[0]) == expected
        assert kernel(attention(x, source, mask=None)[0]) == expected


def test_other_types_and_what_does_not_train_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        x, source, mask = inputs(4, dtype)
        assert kernel(layer(dtype)(x, source, mask=mask)[0]) == "kernel"
    q, k = torch.randn(1, 1, 4, 8).bfloat16(), torch.randn(1, 1, 4, 8).bfloat16()
    assert not trains_on_few_keys(q, k, 4)
    assert trains_on_few_keys(q, k.requires_grad_(), 4)  # a prefix that trains
    with torch.no_grad():
        assert not trains_on_few_keys(q, k, 4)
    assert not trains_on_few_keys(q.to("meta"), k.to("meta"), 4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # a graph's kernels are its compiler's
    assert not trains_on_few_keys(q, k, 4)


def test_who_asks_for_the_kernel_gets_it() -> None:
    x, source, mask = inputs(4, torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # its name in torch on the CPU, too
        assert kernel(layer(torch.bfloat16)(x, source, mask=mask)[0]) == "kernel"


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_attention_and_gradients(causal: bool) -> None:
    """As near to float64 as the kernel is; causal without a mask, and of a padded source."""

    def run(dtype: torch.dtype, by: Any) -> list[Tensor]:
        attention = layer(torch.bfloat16, causal).to(dtype)
        x, source, mask = inputs(9, torch.bfloat16)
        x, source = x.to(dtype).requires_grad_(), source.to(dtype).requires_grad_()
        with by:
            output = attention(x + 0 * source[:, :5], mask=None)[0] if causal else attention(x, source, mask=mask)[0]
        return [output.double(), *(g.double() for g in torch.autograd.grad(output.sin().sum(), [x, source]))]

    expected = run(torch.float64, nullcontext())
    by_formula = run(torch.bfloat16, nullcontext())
    by_kernel = run(torch.bfloat16, sdpa_kernel(SDPBackend.FLASH_ATTENTION))
    for reference, formula, others in zip(expected, by_formula, by_kernel, strict=True):
        least = torch.finfo(torch.bfloat16).eps * reference.norm()
        assert (formula - reference).norm() <= 1.5 * (others - reference).norm() + least
