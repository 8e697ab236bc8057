"""From ids to vectors that know their place: token vectors, absolute positions, norm, dropout."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration.configuration_dragoman import DragomanConfig
from .dropout import Dropout
from .position_encodings import LearnedPositions, SinusoidalPositions


class TokenEmbedding(nn.Embedding):
    """``E[id] · scale``. The scale lives here so that ``inputs_embeds`` of a user's own are taken as they are.

    The row ``fixed_id`` gets no gradient from here (a tied head may still move it).
    """

    def __init__(self, vocab_size: int, size: int, scale: float, fixed_id: int | None = None) -> None:
        super().__init__(vocab_size, size)
        self.scale = scale
        self.fixed_id = fixed_id

    def with_vectors_of(self, other: nn.Embedding) -> "TokenEmbedding":
        """One with the weight of ``other``, the parameter itself, and the scale of this one."""
        with torch.device("meta"):
            new = TokenEmbedding(len(other.weight), other.embedding_dim, self.scale, self.fixed_id)
        new.weight = other.weight
        return new.train(self.training)

    @property
    def embed_scale(self) -> Tensor:
        """The scale by the name, and of the type, that peft looks for when it adds to a row or replaces one."""
        return torch.tensor(self.scale, dtype=self.weight.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.weight.shape[0], "Token id")
        return F.embedding(ids, self.weight, self.fixed_id) * self.scale  # (B, T, C)


def check_ids(ids: Tensor, limit: int, what: str) -> None:
    """Name an id that has no row. On the CPU only: elsewhere the look would make every step wait for the device.

    Raises:
        IndexError: for an id outside [0, limit).
    """
    if ids.device.type != "cpu" or ids.numel() == 0 or torch.compiler.is_compiling():
        return
    lowest, highest = (int(bound) for bound in ids.aminmax())
    if lowest < 0 or highest >= limit:
        raise IndexError(
            f"{what} {lowest if lowest < 0 else highest} is outside the vocabulary of {limit}: were the ids made by "
            "this model's tokenizer, and does config.vocab_size (source_vocab_size for inputs) count all of its tokens?"
        )


class InputEmbedding(nn.Module):
    """``dropout(norm(x + position))``, each where the configuration asks for it. Maps (B, T, C) to (B, T, C).

    With ``norm_first`` it is ``dropout(norm(x) + position)``.
    """

    def __init__(self, config: DragomanConfig, norm: nn.Module | None, norm_first: bool) -> None:
        super().__init__()
        size, limit = config.hidden_size, config.max_position_embeddings
        self.positions: SinusoidalPositions | LearnedPositions | None = None
        if config.position_encoding == "sinusoidal":
            self.positions = SinusoidalPositions(limit, size, config.position_offset, config.sinusoidal_endpoint)
        elif config.position_encoding == "learned":
            self.positions = LearnedPositions(limit, size, config.position_offset)
        self.max_length = limit
        self.norm = norm
        self.norm_first = norm_first
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, columns: int, side: str) -> Tensor:
        """``columns`` counts those of the cache too; ``side`` is for the error."""
        if self.norm is not None and self.norm_first:
            x = self.norm(x)
        if self.positions is not None:
            self._check(positions, columns, side)
            x = x + self.positions(positions).to(x.dtype)
        if self.norm is not None and not self.norm_first:
            x = self.norm(x)
        return self.dropout(x)

    def _check(self, positions: Tensor, columns: int, side: str) -> None:
        """Raises ValueError for a position that the table does not hold; by columns where a look would have to wait."""
        if torch.compiler.is_compiling():
            return
        on_cpu = positions.device.type == "cpu"
        first, last = (int(p) for p in positions.aminmax()) if on_cpu else (0, columns - 1)
        if first < 0 or last >= self.max_length:
            raise ValueError(
                f"A {side} position {last if first >= 0 else first} does not fit max_position_embeddings = "
                f"{self.max_length}: truncate the sequence, or build the model with a larger max_position_embeddings "
                "or position_encoding='rotary'."
            )
