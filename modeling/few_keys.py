"""Training in bfloat16 on the CPU.

There, where a query has few keys, SDPA's kernel goes backwards more slowly than the plain formula, and than itself in
fp32: ``benchmarks/few_keys.py``, docs/performance.md.
"""

import torch
from torch import Tensor

FEW = 128  # keys


def trains_on_few_keys(query: Tensor, key: Tensor, longest: int) -> bool:
    """Whether SDPA's kernel would be slow to go back from ``longest`` keys, and is not what the caller asked for."""
    return (
        longest <= FEW
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad)
        and not torch.compiler.is_compiling()
        and torch.backends.cuda.math_sdp_enabled()  # by torch.nn.attention.sdpa_kernel, for the CPU, too
    )
