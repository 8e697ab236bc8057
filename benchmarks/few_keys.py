"""What attention costs in training on a CPU, by SDPA's kernel and by plain products: ``python benchmarks/few_keys.py``.

Milliseconds, medians, of attention and its gradients, 8 heads of 64, a padding mask, 4,096 tokens in all, as many
queries as keys. ``modeling/few_keys.py`` chooses by it.
"""

import platform

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

TOKENS, HEADS, SIZE = 4096, 8, 64
KEYS = (8, 16, 32, 64, 128, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)


def attend(inputs: list[Tensor], mask: Tensor, upstream: Tensor, kernel: SDPBackend) -> None:
    with sdpa_kernel(kernel):
        output = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.autograd.grad(output, inputs, upstream)


def milliseconds(keys: int, dtype: torch.dtype, kernel: SDPBackend) -> float:
    shape = (TOKENS // keys, keys, HEADS, SIZE)
    inputs = [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = (torch.arange(keys) < keys - 2).expand(shape[0], 1, keys, keys)
    values = {"attend": attend, "inputs": inputs, "mask": mask, "upstream": torch.randn_like(inputs[0])}
    values["kernel"] = kernel
    timer = Timer("attend(inputs, mask, upstream, kernel)", globals=values, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=0.5).median


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print(f"| keys | {' | '.join(f'{name}: kernel, products' for name in DTYPES)} |\n|--:|{'--:|' * len(DTYPES)}")
    for keys in KEYS:
        times = ([milliseconds(keys, dtype, kernel) for kernel in KERNELS] for dtype in DTYPES.values())
        print(f"| {keys} | {' | '.join(f'{kernel:.0f}, {products:.0f}' for kernel, products in times)} |")


if __name__ == "__main__":
    main()
