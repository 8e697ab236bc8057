"""One vector for a whole text: a weighted sum of its states.

B batch, S tokens, C model size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pooling(nn.Module):
    """``Σ wₛ hₛ`` with weights that sum to 1 over the tokens of a row; padding has none. By ``kind``:

    =========  ==========================================================================================
    mean       the same weight for every token
    first      all on the first token
    last_eos   all on the last token, which has to be the end of the sequence
    attention  ``softmax(h q)``, with a learned query q, of Yang et al. 2016 (Hierarchical Attention Networks)
    =========  ==========================================================================================

    The query begins at 0, where attention is the mean; so it stays where an adapter trains without it.
    """

    def __init__(self, hidden_size: int, kind: str, eos_token_id: int) -> None:
        super().__init__()
        self.kind = kind
        self.eos_token_id = eos_token_id
        self.query = nn.Parameter(torch.zeros(hidden_size)) if kind == "attention" else None

    def forward(self, states: Tensor, mask: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (B, S, C) and mask (B, S) to vectors (B, C) and weights (B, S), these in fp32 at least.

        Raises:
            ValueError: for a row without tokens, and where ``ids`` (B, S) show a last token that is not the end.
        """
        tokens = mask != 0
        check_rows(tokens)
        wide = torch.promote_types(states.dtype, torch.float32)
        if self.query is not None:
            scores = (states.to(wide) * self.query).sum(-1)  # (B, S)
            weights = scores.masked_fill(~tokens, torch.finfo(wide).min).softmax(-1)
        elif self.kind == "mean":
            weights = tokens.to(wide) / tokens.sum(-1, keepdim=True)
        else:
            first = tokens.long().argmax(-1)
            last = tokens.shape[1] - 1 - tokens.flip(-1).long().argmax(-1)
            if self.kind == "last_eos" and ids is not None:
                check_ends(ids.gather(1, last[:, None])[:, 0], self.eos_token_id)
            weights = F.one_hot(first if self.kind == "first" else last, tokens.shape[1]).to(wide)
        pooled = (weights[:, None] @ states.to(wide))[:, 0]  # (B, 1, S) (B, S, C) → (B, C)
        return pooled.to(states.dtype), weights


def check_rows(tokens: Tensor) -> None:
    """Raises ValueError for padding only. On the CPU only: elsewhere the look would make every step wait."""
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    empty = (~tokens.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Row {empty[0]} of the batch is padding only: there is nothing to classify. Leave such rows out; a "
            "tokenizer that ends each text with its eos_token makes none, even of empty texts."
        )


def check_ends(last_ids: Tensor, eos_token_id: int) -> None:
    """Raises ValueError for another last token. On the CPU only, as above."""
    if last_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    other = (last_ids != eos_token_id).nonzero().flatten().tolist()
    if other:
        raise ValueError(
            f"pooling='last_eos' takes the state of the last token, and that of row {other[0]} is id "
            f"{int(last_ids[other[0]])}, not eos_token_id {eos_token_id}: tokenize with add_special_tokens=True, or "
            "choose pooling='mean'."
        )
