"""Attention of the sequences of a packed row, each to its own keys.

T queries and S keys in all; a run is n neighbours of t queries and s keys each; H, K, D as in attention.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn

from .few_keys import trains_on_few_keys
from .packing import Packing

# SDPA's kernel for the CPU by its own names: it has no public one. Where a torch has none, nothing here is needed.
KERNEL: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
KERNEL_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def attend_packed(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, K, S, D)
    value: Tensor,  # (1, K, S, D)
    packing: Packing,
    position_bias: list[Tensor] | None,
    dropout: float,
    scaling: float,
) -> Tensor:
    """Attention of every sequence to its own keys. (1, T, H, D).

    Run by run with ``attend``, transformers' SDPA or the reference. SDPA without bias and dropout is spared autograd's
    records of every run on the CPU, and on CUDA, in half precision, done all at once by torch's kernel for varying
    lengths; transformers' flash attention, where that is chosen, does all at once, too. torch's kernel was compared
    with padding on a GPU (benchmarks/accelerator.py); the call of flash attention was tested against a stand-in alone.
    """
    implementation = module.config._attn_implementation or "eager"
    if "flash" in implementation:
        longest_q, longest_k = packing.longest
        output, _ = attend(
            module,
            query,
            key,
            value,
            None,
            dropout=dropout,
            scaling=scaling,
            cu_seq_lens_q=packing.cu_seq_lens_q,
            cu_seq_lens_k=packing.cu_seq_lens_k,
            max_length_q=longest_q,
            max_length_k=longest_k,
        )
        return output
    if implementation not in ("eager", "sdpa"):
        raise NotImplementedError(
            f"Packed batches need the attention implementation 'sdpa', 'eager' or a flash one, not {implementation!r}: "
            "model.set_attn_implementation('sdpa')."
        )
    plain = implementation == "sdpa" and position_bias is None and dropout == 0
    if plain and has_varlen_kernel(query):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D), (S, K, D)
        found: Any = varlen_attn(
            q,
            k,
            v,
            packing.cu_seq_lens_q,
            packing.cu_seq_lens_k,
            *packing.longest,
            scale=scaling,
            window_size=(-1, 0 if module.is_causal else -1),
            enable_gqa=module.num_key_value_groups > 1,
        )
        return found[None]
    if plain and has_cpu_kernel(packing, query, key, value):
        dtype = query.dtype
        if trains_on_few_keys(query, key, packing.longest[1]):
            query, key, value = query.float(), key.float(), value.float()
        return _RunByRun.apply(query, key, value, packing, module.is_causal, scaling).to(dtype)
    outputs = []
    runs = zip(packing.queries(query, 2), packing.keys(key, 2), packing.keys(value, 2), strict=True)
    for i, (q, k, v) in enumerate(runs):  # (n, H, t, D), (n, K, s, D)
        by_module = implementation == "sdpa" and module.is_causal  # which SDPA asks
        mask = None if by_module else packing.mask(q, k, module.is_causal)
        bias = None if position_bias is None else position_bias[i].to(q.dtype)
        output, _ = attend(module, q, k, v, mask, dropout=dropout, scaling=scaling, position_bias=bias)
        outputs.append(output)  # (n, t, H, D)
    return packing.in_a_row(outputs, query.shape[2])


def has_varlen_kernel(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


def has_cpu_kernel(packing: Packing, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether SDPA would take its own kernel for the CPU, with these arguments and no more."""
    return (
        KERNEL is not None
        and packing.runs is not None
        and query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and type(query) is type(key) is type(value) is Tensor
        and torch.backends.cuda.flash_sdp_enabled()  # by torch.nn.attention.sdpa_kernel, for the CPU, too
    )


class _RunByRun(torch.autograd.Function):
    """SDPA's kernel for the CPU over all runs, as one step of autograd: short sequences take less than its records."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, causal: bool, scaling: float
    ) -> Tensor:
        runs = zip(packing.queries(query, 2), packing.keys(key, 2), packing.keys(value, 2), strict=True)
        found = [KERNEL(q, k, v, 0.0, causal, scale=scaling) for q, k, v in runs]  # (n, H, t, D), (n, H, t)
        output = packing.in_a_row([o.transpose(1, 2) for o, _ in found], query.shape[2])  # (1, T, H, D)
        ctx.save_for_backward(query, key, value, output, *(log_sum for _, log_sum in found))
        ctx.others = packing, causal, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        packing, causal, scaling = ctx.others
        of_queries = (packing.queries(x, 2) for x in (gradient.transpose(1, 2), query, output.transpose(1, 2)))
        of_keys = (packing.keys(x, 2) for x in (key, value))
        runs = zip(*of_queries, *of_keys, log_sums, strict=True)
        found = [KERNEL_BACKWARD(g, q, k, v, o, log_sum, 0.0, causal, scale=scaling) for g, q, o, k, v, log_sum in runs]
        rows = (packing.in_a_row([x.transpose(1, 2) for x in part], 0) for part in zip(*found, strict=True))
        return *(row.transpose(1, 2) for row in rows), None, None, None
