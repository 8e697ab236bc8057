"""Training on short sequences on the CPU.

Backwards, SDPA's kernel for the CPU takes longer than plain matrix products where a query has few keys, and in half
precision several times as long: ``benchmarks/few_keys.py``, docs/performance.md.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

FEW = {torch.float32: 16, torch.bfloat16: 128, torch.float16: 128}  # up to so many keys


def trains_on_few_keys(query: Tensor, key: Tensor, longest: int) -> bool:
    """Whether SDPA's kernel would be slow to go back from ``longest`` keys."""
    return (
        longest <= FEW.get(query.dtype, 0)
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad)
        and not torch.compiler.is_compiling()
    )


def choose_kernel(query: Tensor, key: Tensor) -> AbstractContextManager[None]:
    """Around SDPA: plain products where they train faster, unless ``torch.nn.attention.sdpa_kernel`` rules them out."""
    if trains_on_few_keys(query, key, key.shape[2]) and torch.backends.cuda.math_sdp_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
