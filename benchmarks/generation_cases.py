"""What every engine of benchmarks/generate.py is given: sizes, sources, and weights under which rows differ."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peer_models import MODELS, Ids, Sizes

END = 0
CROSS = ("encoder_attn", "EncDecAttention", "cross_attn", "multihead_attn")


class Case(NamedTuple):
    layers: int
    size: int
    feed_forward: int
    heads: int
    vocabulary: int
    batch: int = 1
    beams: int = 1
    source: int = 25
    tokens: int = 64

    @property
    def pad(self) -> int:
        return self.vocabulary - 1  # where Marian has it, and begins


def sources(case: Case) -> list[list[int]]:
    """Rows from 0.6 to 1.4 times ``case.source`` long; a single one is exactly that."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.6, 1.4, case.batch) if case.batch > 1 else torch.ones(1)
    lengths = [max(2, round(case.source * float(share))) for share in spread]
    draw = partial(torch.randint, 2, case.pad, generator=generator)
    return [[*draw((length - 1,)).tolist(), END] for length in lengths]


def padded(case: Case) -> tuple[Tensor, Tensor]:
    """Sources (B, S) and their mask."""
    rows = [torch.tensor(row) for row in sources(case)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=case.pad)
    return ids, (ids != case.pad).long()


def settle(model: Any, up: nn.Linear | None = None, down: nn.Linear | None = None) -> Any:
    """Weights under which a row does not repeat itself, nor another one.

    The last layer turns every token's vector elsewhere. Sharp, wide cross-attention makes the source weigh beside the
    token before; otherwise beams over different sources all end in the same likeliest run of tokens.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "position" not in name and "relative" not in name:
                weight.normal_(std=gain_of(name) * weight.shape[1] ** -0.5)
        if up is not None and down is not None:
            size = up.in_features
            turn = torch.linalg.qr(torch.randn(size, size)).Q
            up.weight[: 2 * size] = torch.cat([torch.eye(size), -torch.eye(size)])  # relu(x) and relu(-x)
            down.weight[:, : 2 * size] = 30 * torch.cat([turn, -turn], dim=1)
    return model.eval()


def gain_of(name: str) -> float:
    if "shared" in name or "embed" in name or "emb." in name:
        return 1.0
    if not any(part in name for part in CROSS):
        return 0.3
    return 3.0 if any(part in name for part in ("q_proj", "k_proj", ".q.", ".k.")) else 0.8


def built(name: str, case: Case) -> Any:
    return MODELS[name](Sizes(*case[:5]), Ids(case.pad, END), positions=4096 if name == "Marian" else 1024)
