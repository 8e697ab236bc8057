"""How fast a linear layer's products are in fp32, by MKL and by oneDNN: ``python benchmarks/linear_products.py``.

Billions of operations a second, medians, of the product itself and of the gradients of weight and input. M rows of K
channels to N.
"""

import platform

import torch
from dragoman.modeling.linear import onednn_product
from torch.nn import functional as F
from torch.utils.benchmark import Timer

SHAPES = ((1600, 256, 1024), (1600, 512, 512), (1600, 512, 2048), (1600, 2048, 512), (512, 512, 32000))
PRODUCTS = {
    "product": ("linear(x, w)", "onednn(x, w)"),
    "gradient of w": ("g.T @ x", "onednn(g.T, x.T)"),
    "gradient of x": ("g @ w", "onednn(g, w.T)"),
}


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print(f"| M, K, N | {' | '.join(f'{name}: MKL, oneDNN' for name in PRODUCTS)} |\n|:--|{'--:|' * len(PRODUCTS)}")
    for m, k, n in SHAPES:
        tensors = {"x": torch.randn(m, k), "w": torch.randn(n, k), "g": torch.randn(m, n)}
        functions = {"linear": F.linear, "onednn": onednn_product}
        cells = []
        for pair in PRODUCTS.values():
            timers = (Timer(code, globals=tensors | functions, num_threads=torch.get_num_threads()) for code in pair)
            medians = [timer.blocked_autorange(min_run_time=0.5).median for timer in timers]
            cells.append(", ".join(f"{2 * m * k * n / seconds / 1e9:.0f}" for seconds in medians))
        print(f"| {m}, {k}, {n} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
