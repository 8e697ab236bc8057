"""GRU or LSTM layers over ragged rows: padding, wherever it stands, neither changes a state nor is one."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class RecurrentLayers(nn.Module):
    """torch's fused GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997), batch first, states of size C.

    Bidirectional, each direction has C/2 channels, and a layer's state is both last states side by side.
    """

    def __init__(
        self, cell: Literal["gru", "lstm"], input_size: int, size: int, layers: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.directions = 2 if bidirectional else 1
        self.rnn = kind(
            input_size,
            size // self.directions,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, state: tuple[Tensor, Tensor | None] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """x (B, T, ·), mask (B, T), state (B, L, C) twice → outputs (B, T, C), 0 at padding, and the last state.

        The last state is that after the last token of each row. Rows without any keep the state that they had.
        """
        if mask is None or bool(mask.all()):
            outputs, last = self.rnn(x, self._split(state))
            return outputs, self._join(last)
        # Tokens first, in their order, so that padding of any kind stands behind them: packing leaves it out.
        order = mask.eq(0).to(torch.uint8).argsort(dim=1, stable=True)  # (B, T)
        lengths = mask.ne(0).sum(1)
        tokens_first = x.gather(1, order[..., None].expand_as(x))
        packed = pack_padded_sequence(tokens_first, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed_outputs, last = self.rnn(packed, self._split(state))
        outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=x.shape[1])
        outputs = torch.zeros_like(outputs).scatter(1, order[..., None].expand_as(outputs), outputs)
        outputs = outputs * mask[..., None].ne(0)
        hidden, cell = self._join(last)
        empty = lengths.eq(0)[:, None, None]
        before = (torch.zeros_like(hidden), None) if state is None else state
        hidden = torch.where(empty, before[0], hidden)
        if cell is not None:
            cell = torch.where(empty, torch.zeros_like(cell) if before[1] is None else before[1], cell)
        return outputs, (hidden, cell)

    def _split(self, state: tuple[Tensor, Tensor | None] | None) -> Any:
        """(B, L, C) to torch's (L · directions, B, C / directions)."""
        if state is None:
            return None
        parts = [
            part.unflatten(-1, (self.directions, -1)).flatten(1, 2).transpose(0, 1).contiguous()
            for part in state
            if part is not None
        ]
        return tuple(parts) if isinstance(self.rnn, nn.LSTM) else parts[0]

    def _join(self, state: Any) -> tuple[Tensor, Tensor | None]:
        parts = state if isinstance(state, tuple) else (state,)
        joined = [part.transpose(0, 1).unflatten(1, (-1, self.directions)).flatten(2) for part in parts]
        return joined[0], joined[1] if len(joined) > 1 else None
