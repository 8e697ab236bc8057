"""Int8 products on the CPU: how a matrix becomes int8, the kernel that multiplies by it, and whether there is one here.

N outputs, K inputs, M rows of activations. The one file that knows which kernel of torch is used: ``torch._int_mm``,
which takes int8 as it lies in the checkpoint. ``torch.ops.quantized`` packs tensors of a kind that torch is about to
remove, and scales all rows of a batch alike; ``onednn.qlinear_pointwise`` costs 20 µs a call.
"""

from functools import cache

import torch
from torch import Tensor

LARGEST = 127  # of the integers, on either side of 0
_CENTRE = 128  # activations are stored as 1 … 255
_ROUNDING = torch.tensor(_CENTRE + 0.5)  # the conversion to uint8 cuts
_NOTHING = torch.tensor(0.0)


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``(q, scale)`` with ``matrix ≈ q · scale``: (N, K) int8 in [−127, 127], and (N) fp32 ``max|row| / 127``.

    A row of zeros has scale 0.

    Raises:
        ValueError: for a row that is not finite.
    """
    matrix = matrix.detach().float()
    scale = matrix.abs().amax(dim=1) / LARGEST
    if not scale.isfinite().all():
        raise ValueError(f"Row {int((~scale.isfinite()).nonzero()[0])} of a weight is not finite: it has no int8 form.")
    q = (matrix / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-LARGEST, LARGEST)
    return q.to(torch.int8), scale


def centre_correction(q: Tensor, scale: Tensor) -> Tensor:
    """``−128 · Σ q · scale`` of every output, which undoes that activations are stored as 1 … 255. (N)."""
    return -_CENTRE * q.sum(dim=1, dtype=torch.int64).float() * scale


def int8_product(x: Tensor, transposed: Tensor, scale: Tensor, correction: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b``: (M, K) fp32 by (K, N) int8, to (M, N) fp32.

    Every row of ``x`` is rounded to ``max|row| / 127 · {−127 … 127}``, then multiplied in exact integers. So a row's
    result depends on no other row, on no number of threads, and on no neighbour that a matrix is joined with.
    """
    largest = x.abs().amax(-1, keepdim=True)  # (M, 1)
    # A row of zeros is 0/0 here, whatever that is as an integer, and 0 again once multiplied by its largest.
    levels = torch.addcdiv(_ROUNDING, x, largest, value=LARGEST).to(torch.uint8)
    product = torch.addcmul(correction, torch._int_mm(levels, transposed), scale)
    return torch.addcmul(_NOTHING if bias is None else bias, product, largest, value=1 / LARGEST)


@cache
def missing_kernel() -> str | None:
    """Why this machine cannot multiply int8 both exactly and fast; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN, which multiplies int8"
    # The largest sums: where the CPU adds pairs of products in 16 bits, these are cut off.
    levels = torch.tensor([255, 1], dtype=torch.uint8).repeat_interleave(64).repeat(3, 1)  # (3, 128)
    matrix = torch.tensor([[127], [-127], [1]], dtype=torch.int8).repeat(1, 128)
    expected = levels.long() @ matrix.long().T
    try:
        found = torch._int_mm(levels, matrix.T)
    except (AttributeError, RuntimeError) as error:
        return f"torch {torch.__version__} has no int8 product for this CPU ({error})"
    if not torch.equal(found.long(), expected):
        return "this CPU cuts off sums of int8 products (it has no VNNI)"
    return None
