"""Linear layers for a few rows at a time, as decoding has them: the same product by the kernel that is good at it."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below, a call of oneDNN costs more than it saves; measured on one core complex, and of little consequence.
SMALLEST_FOR_ONEDNN = 2**17  # weights


class FewRowLinear(nn.Module):
    """``x Wᵀ + b`` with the weight of a ``nn.Linear``, which stays where it is.

    torch multiplies single-precision matrices on the CPU by MKL, which reads a weight at half the memory's speed or
    less where x has one row or a few; oneDNN does better, and better still once the weight is in its own order.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # not as parameters: nothing here is to be saved, moved or trained
        self.__dict__.update(weight=linear.weight.detach(), bias=None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def pack(self, rows: int) -> None:
        """Put a copy of the weight into oneDNN's order: as long as reading it ten to twenty times."""
        self.__dict__["weight"] = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)


def has_few_row_kernel(linear: nn.Module) -> bool:
    """Whether the layer is a plain one, with an fp32 weight on the CPU that is worth a call of oneDNN."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight.data) is Tensor  # no quantised or distributed one in a tensor's clothes
        and linear.weight.dtype == torch.float32
        and linear.weight.device.type == "cpu"
        and linear.weight.is_contiguous()
        and linear.weight.numel() >= SMALLEST_FOR_ONEDNN
        and ONEDNN
    )


def _probe() -> bool:
    """Whether this torch has the two operators, which have no public name, and whether they compute what they should."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.eye(3, 16), torch.arange(128.0).view(8, 16), torch.ones(8)
    expected = F.linear(x, weight, bias)
    try:
        for w in (weight, torch.ops.mkldnn._reorder_linear_weight(weight, 3)):
            if not torch.equal(torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], ""), expected):
                return False
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


with torch.inference_mode():
    ONEDNN = _probe()


def with_few_row_linears(module: nn.Module, ours: tuple[type[nn.Module], ...]) -> nn.Module:
    """A twin of the module with other linear layers and the same everything else.

    Only classes in ``ours`` are gone into; what else there is, be it a wrapped or a quantised layer, is called as is.
    """
    if has_few_row_kernel(module):
        assert isinstance(module, nn.Linear)
        return FewRowLinear(module)
    if type(module) not in ours:
        return module
    twin = copy.copy(module)
    twin._modules = {
        name: child if child is None else with_few_row_linears(child, ours) for name, child in module._modules.items()
    }
    return twin


def few_row_linears(*modules: nn.Module) -> Iterator[FewRowLinear]:
    for module in modules:
        yield from (child for child in module.modules() if isinstance(child, FewRowLinear))
