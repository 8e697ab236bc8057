"""What attention costs in training on a CPU, by SDPA's kernel and by the formula: ``python benchmarks/few_keys.py``.

Milliseconds, medians, of attention and its gradients, 8 heads of 64, a padding mask, 4,096 tokens in all, as many
queries as keys. ``modeling/few_keys.py`` chooses by it.
"""

import platform
from collections.abc import Callable

import torch
from dragoman.modeling.attention import eager_attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

TOKENS, HEADS, SIZE = 4096, 8, 64
KEYS = (8, 16, 32, 64, 128, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def by_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def by_formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return eager_attention(nn.Identity(), query, key, value, mask, SIZE**-0.5)[0]


def train(attend: Attend, inputs: list[Tensor], mask: Tensor) -> None:
    attend(*inputs, mask).sum().backward()


def milliseconds(attend: Attend, keys: int, dtype: torch.dtype) -> float:
    shape = (TOKENS // keys, keys, HEADS, SIZE)
    inputs = [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = (torch.arange(keys) < keys - 2).expand(shape[0], 1, keys, keys)
    values = {"train": train, "attend": attend, "inputs": inputs, "mask": mask}
    timer = Timer("train(attend, inputs, mask)", globals=values, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=0.5).median


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print(f"| keys | {' | '.join(f'{name}: kernel, formula' for name in DTYPES)} |\n|--:|{'--:|' * len(DTYPES)}")
    for keys in KEYS:
        times = ([milliseconds(attend, keys, dtype) for attend in (by_kernel, by_formula)] for dtype in DTYPES.values())
        print(f"| {keys} | {' | '.join(f'{kernel:.0f}, {formula:.0f}' for kernel, formula in times)} |")


if __name__ == "__main__":
    main()
