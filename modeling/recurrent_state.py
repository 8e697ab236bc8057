"""What a recurrent decoder carries from one call to the next, while it writes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RecurrentState:
    """A cache for ``past_key_values``: constant in size, however long the output. B rows, L layers, C channels.

    Keys and values belong to the source and are made once. Beams of a source share it, so reordering them moves only
    what they wrote.
    """

    hidden: Tensor | None = None  # (B, L, C)
    cell: Tensor | None = None  # (B, L, C), of an LSTM
    attentional: Tensor | None = None  # (B, C), what the last step attended to, where it is fed to the next one
    keys: Tensor | None = None  # (B, S, C), projected
    values: Tensor | None = None  # (B, S, C)
    length: int = 0  # decoder columns seen, padding included

    is_compileable = is_croppable = False  # asked by generate()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for name in ("hidden", "cell", "attentional"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, beam_idx.to(value.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        for name, value in self._tensors():
            setattr(self, name, value.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        for name, value in self._tensors():
            setattr(self, name, value[indices])

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)]
