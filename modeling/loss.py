"""The one loss of the project: the mean over the real target tokens of a whole optimisation step.

N rows (tokens of the batch), C model size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import PLAIN, is_worth_onednn, onednn_product

IGNORE_INDEX = -100
LOGITS_AT_ONCE = 2**23  # elements: in fp32 32 MiB, the most that glibc keeps for the next chunk; on CUDA two times that


def head_cross_entropy(
    states: Tensor,
    head: nn.Module,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """:func:`token_cross_entropy` of ``scale · head(states)`` without its (B, T, V) logits.

    States (B, T, C), labels (B, T). Logits exist for a few rows at a time, in fp32 at least whatever the dtype of the
    weights, and leave only gradients behind (Wijmans et al. 2024, arXiv:2411.09009, split the vocabulary instead).
    A head that is more than a matrix and a bias is asked for all its logits at once.
    """
    if not is_plain_linear(head):
        return token_cross_entropy(head(states) * scale, labels, num_items_in_batch, label_smoothing)
    weight, bias = cast(nn.Linear, head).weight, cast(nn.Linear, head).bias
    rows, targets = states.flatten(0, -2), labels.to(states.device).flatten()
    device, narrow = rows.device.type, torch.promote_types(rows.dtype, weight.dtype)
    if torch.is_autocast_enabled(device):
        narrow = torch.get_autocast_dtype(device)
    needs_gradient = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in (rows, weight, bias))
    with torch.autocast(device, enabled=False):
        total = _ChunkedCrossEntropy.apply(rows, weight, bias, targets, label_smoothing, scale, narrow, needs_gradient)
    return mean_over_labels(total, targets, num_items_in_batch)


def token_cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """``Σ −log p(label) / N`` over labels that are not −100, in fp32 at least. Logits (B, T, V), labels (B, T).

    ``N`` is ``num_items_in_batch``, the target tokens of all micro-batches of the step, so that their losses add up
    to that of the unsplit batch; without it, the target tokens here. Smoothing ε leaves 1−ε on the label and spreads
    ε evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567).
    """
    labels = labels.to(logits.device).flatten().long()
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # (N, V)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="sum")
    return mean_over_labels(total, labels, num_items_in_batch)


def mean_over_labels(total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """``total / N``; ``N`` as in :func:`token_cross_entropy`."""
    count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)  # nothing to learn: 0, not NaN


def is_plain_linear(head: nn.Module) -> bool:
    """Whether calling ``head`` is no more than its weight and bias say: no adapter, quantisation, hook or sharding."""
    return (
        type(head) in PLAIN
        and type(head.weight) is nn.Parameter
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of ``scale · (x Wᵀ + b)``; its gradients are taken while a chunk's logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,  # (N, C)
        weight: Tensor,  # (V, C)
        bias: Tensor | None,  # (V)
        labels: Tensor,  # (N)
        smoothing: float,
        scale: float,
        narrow: torch.dtype,  # of the factors of a product
        needs_gradient: tuple[bool, bool, bool],  # of rows, weight and bias
    ) -> Tensor:
        given = (rows, weight, bias, labels, smoothing, scale, narrow, needs_gradient)
        compiling = torch.compiler.is_compiling()
        total, *found = _as_one_operator(*given) if compiling else loss_and_gradients(*given)
        kept = (each if needed else None for each, needed in zip(found, needs_gradient, strict=True))
        ctx.save_for_backward(rows, weight, bias, labels, *kept)
        ctx.others = smoothing, scale, total.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, labels, *found = ctx.saved_tensors
        factors = [rows, weight, bias]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # what comes out is differentiated again
            smoothing, scale, wide = ctx.others
            # Of aliases: where the weight is tied, rows were made from it, too, and that part is not for here.
            rows, weight, bias = factors = [None if x is None else x.view_as(x) for x in factors]
            logits = F.linear(rows.to(wide), weight.to(wide), None if bias is None else bias.to(wide)) * scale  # (N, V)
            total = F.cross_entropy(
                logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction="sum"
            )
            wanted = [x for x, kept in zip(factors, found, strict=True) if kept is not None]
            again = iter(torch.autograd.grad(total, wanted, gradient, create_graph=True))
            gradients = [None if kept is None else next(again) for kept in found]
        else:
            pairs = zip(factors, found, strict=True)
            gradients = [None if kept is None else (kept * gradient).to(x.dtype) for x, kept in pairs]
        return *gradients, None, None, None, None, None


def loss_and_gradients(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    smoothing: float,
    scale: float,
    narrow: torch.dtype,
    needs_gradient: Sequence[bool],
    only_real: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, and its gradients of rows, weight and bias; empty where not needed. Sums are kept in fp32 at least.

    The gradient of a row's logits is ``p − (1−ε) · onehot(label) − ε/V``. Ignored rows are left out, or with
    ``only_real=False``, which need not wait to see how many there are, computed for nothing.
    """
    real = labels != IGNORE_INDEX
    kept: Tensor | slice = real if only_real else slice(None)
    wide = torch.promote_types(narrow, torch.float32)
    x, w, real, labels = rows[kept].to(narrow), weight.to(narrow), real[kept], labels[kept]
    w_wide = w if w.is_cuda else w.to(wide)
    total = rows.new_zeros((), dtype=wide)
    row_gradients = []
    row_gradient, weight_gradient, bias_gradient = _room(rows, weight, needs_gradient, wide)
    size = max(1, LOGITS_AT_ONCE * (2 if weight.is_cuda else 1) // len(weight))
    for part, counts, targets in zip(x.split(size), real.split(size), labels.split(size), strict=True):
        logits = _wide_product(part, w_wide, wide)  # (n, V)
        if bias is not None:
            logits += bias
        if scale != 1:
            logits *= scale
        targets = targets.masked_fill(~counts, 0)
        losses = _losses(logits, targets, smoothing, in_place=any(needs_gradient))
        total += losses.masked_fill(~counts, 0.0).sum()
        if any(needs_gradient):
            gradient = logits.scatter_add_(1, targets[:, None], logits.new_full((len(part), 1), smoothing - 1))
            if smoothing:
                gradient -= smoothing / len(weight)
            if scale != 1 or not only_real:  # seldom: it is one more pass over all of (n, V)
                gradient *= scale * counts[:, None]
            gradient = gradient.to(narrow)  # (n, V)
            if needs_gradient[0]:
                row_gradients.append(_product(gradient, w.T))
            if needs_gradient[1]:
                _add_product(weight_gradient, gradient.T, part)
            if needs_gradient[2]:
                bias_gradient += gradient.sum(0, dtype=wide)
            del gradient
        del logits  # before there are others
    if row_gradients:
        row_gradient[kept] = torch.cat(row_gradients).to(wide)
    return total, row_gradient, weight_gradient, bias_gradient


def _losses(logits: Tensor, labels: Tensor, smoothing: float, in_place: bool) -> Tensor:
    """Of each row, (n); ``in_place`` the logits become probabilities. Only an eighth at a time has room of its own."""
    size = max(1, -(-len(logits) // 8))
    found = []
    for some, targets in zip(logits.split(size), labels.split(size), strict=True):
        log_probs = F.log_softmax(some, dim=-1)
        if in_place:
            torch.exp(log_probs, out=some)
        losses = -(1 - smoothing) * log_probs.gather(1, targets[:, None])[:, 0]
        found.append(losses - smoothing * log_probs.mean(-1) if smoothing else losses)
    return torch.cat(found)


def _room(rows: Tensor, weight: Tensor, needed: Sequence[bool], dtype: torch.dtype) -> list[Tensor]:
    """Zeros for the gradients of rows, weight and bias."""
    shapes = (rows.shape, weight.shape, weight.shape[:1])
    return [rows.new_zeros(s if need else (0,), dtype=dtype) for s, need in zip(shapes, needed, strict=True)]


# A compiler takes it as it is: traced, every other number of chunks would be another graph. Its name is that of the
# module, which a checkpoint may bring a second time.
@torch.library.custom_op(f"{__name__.replace('.', '_')}::chunked_cross_entropy", mutates_args=())
def _as_one_operator(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    smoothing: float,
    scale: float,
    narrow: torch.dtype,
    needs_gradient: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    only_real = not rows.is_cuda
    return loss_and_gradients(rows, weight, bias, labels, smoothing, scale, narrow, needs_gradient, only_real)


@_as_one_operator.register_fake
def _(rows: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, narrow, needs_gradient = others
    wide = torch.promote_types(narrow, torch.float32)
    return rows.new_empty((), dtype=wide), *_room(rows, weight, needs_gradient, wide)  # type: ignore[return-value]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, in one pass over ``total`` where the dtypes allow."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _wide_product(x: Tensor, weight: Tensor, wide: torch.dtype) -> Tensor:
    """``x Wᵀ``, accumulated and returned in ``wide``."""
    if x.is_cuda and x.dtype != wide:
        return torch.mm(x, weight.T, out_dtype=wide)
    return _product(x.to(wide), weight)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return onednn_product(x, weight) if is_worth_onednn(x, weight) else F.linear(x, weight)
