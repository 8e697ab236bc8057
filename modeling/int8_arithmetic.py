"""Int8 products on the CPU: how a matrix becomes int8, the kernels that multiply by it, and whether they are there.

N outputs, K inputs, M rows of activations. The one file that knows which kernels of torch are used: ``torch._int_mm``,
which takes int8 as it lies in the checkpoint, and, for several rows by a large matrix, oneDNN's on a copy in its own
order, which costs some 20 µs more a call. ``torch.ops.quantized`` packs tensors of a kind that torch will soon remove,
and scales all rows of a batch alike.
"""

from functools import cache

import torch
from torch import Tensor

LARGEST = 127  # of the integers, on either side of 0
_CENTRE = 128  # activations are stored as 1 … 255
# A float from 2²³ to 2²⁴ is an integer, and its lowest byte the integer's: adding this rounds and stores at once.
_OFFSET = float(2**23 + _CENTRE)
WORTH_PACKING = 2**20  # weights in a matrix, if its sums are long; twice as many if not
LONG_SUMS = 1024  # inputs


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


class Int8Product:
    """``x Wᵀ + b``: (M, K) fp32 by ``q · scale`` (N, K), to (M, N) fp32.

    Every row of ``x`` is rounded to ``max|row| / 127 · {−127 … 127}``, then multiplied in exact integers. So a row's
    result depends on no other row, on no number of threads, on no neighbour that a matrix is joined with, and on no
    kernel. What is ``lasting`` multiplies two rows and more by a copy of a large matrix in oneDNN's order, made by the
    first.
    """

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None, lasting: bool) -> None:
        outputs, inputs = q.shape
        self.q, self.transposed, self.scale = q, q.T, scale
        self.correction = centre_correction(q, scale)
        self.bias = scale.new_zeros(outputs) if bias is None else bias
        self.offset = torch.full((inputs,), _OFFSET, dtype=torch.float32)  # one number would do, and take twice as long
        self.worth_packing = lasting and is_worth_packing(outputs, inputs) and has_packed_kernel()
        self.packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True)  # (M, 1)
        # A row of zeros is 0/0 here, whatever that is as an integer, and 0 again once multiplied by its largest.
        levels = torch.addcdiv(self.offset, x, largest, value=LARGEST).view(torch.int32).to(torch.uint8)
        product = torch.addcmul(self.correction, self._sums(levels), self.scale)
        return torch.addcmul(self.bias, product, largest, value=1 / LARGEST)

    def _sums(self, levels: Tensor) -> Tensor:
        if not self.worth_packing or len(levels) < 2 or torch.compiler.is_compiling():
            return torch._int_mm(levels, self.transposed)
        if self.packed is None:
            self.packed = torch.ops.onednn.qlinear_prepack(self.q, None)
        return packed_int_mm(levels, self.packed)


def is_worth_packing(outputs: int, inputs: int) -> bool:
    return outputs * inputs >= (WORTH_PACKING if inputs >= LONG_SUMS else 2 * WORTH_PACKING)


def packed_int_mm(levels: Tensor, packed: Tensor) -> Tensor:
    """The integers of ``torch._int_mm``, rounded to fp32."""
    multiply = torch.ops.onednn.qlinear_pointwise.default  # no public name leads to it
    return multiply(levels, 1.0, 0, packed, _ONE, _ZERO, None, 1.0, 0, torch.float32, "none", [], "")


@cache
def missing_kernel() -> str | None:
    """Why this machine cannot multiply int8 both exactly and fast; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN, which multiplies int8"
    levels, matrix, expected = largest_sums()
    try:
        found = torch._int_mm(levels, matrix.T)
    except (AttributeError, RuntimeError) as error:
        return f"torch {torch.__version__} has no int8 product for this CPU ({error})"
    if not torch.equal(found.long(), expected):
        return "this CPU cuts off sums of int8 products (it has no VNNI)"
    return None


@cache
def has_packed_kernel() -> bool:
    levels, matrix, expected = largest_sums()
    try:
        found = packed_int_mm(levels, torch.ops.onednn.qlinear_prepack(matrix, None))
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.long(), expected)


def largest_sums() -> tuple[Tensor, Tensor, Tensor]:
    """Levels, a matrix and their product: where a CPU adds pairs of products in 16 bits, these are cut off."""
    levels = torch.tensor([255, 1], dtype=torch.uint8).repeat_interleave(64).repeat(3, 1)  # (3, 128)
    matrix = torch.tensor([[127], [-127], [1]], dtype=torch.int8).repeat(1, 128)
    return levels, matrix, levels.long() @ matrix.long().T


_ONE, _ZERO = torch.ones(1), torch.zeros(1, dtype=torch.int32)
