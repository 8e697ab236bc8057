"""Where a token stands, told to its vector: added (sinusoidal, learned) or turned into q and k (rotary).

Every scheme takes positions ``(B, T)``, not lengths, so padding, cached decoding and restarts are one code path.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def positions_of(attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """``cumsum(mask) − 1``, 0 at padding: the same for a token however its row is padded. (B, T), or (1, T)."""
    if attention_mask is None:
        return torch.arange(length, device=device)[None]
    if attention_mask.dim() == 4:  # prepared already: the last query sees every key that is there
        attention_mask = seen_keys(attention_mask)[:, 0, -1]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def seen_keys(mask: Tensor) -> Tensor:
    """Of a mask of pairs, in bools: a number that is added is 0 where a query sees a key, an integer 1."""
    return mask >= 0 if mask.is_floating_point() else mask.bool()


def refuse_to_guess(attention_mask: Any) -> None:
    """Raises ValueError for a prepared mask whose last query does not see all that others see."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() < 4 or attention_mask.device.type != "cpu":
        return
    if torch.compiler.is_compiling() or attention_mask.shape[2] == 1:
        return
    seen = seen_keys(attention_mask)[:, 0]  # (B, T, S)
    if not torch.equal(seen.any(1), seen[:, -1]):
        raise ValueError(
            "In this 4-D decoder_attention_mask the last token does not see all that others see, so it does not tell "
            "where they stand: pass decoder_position_ids (B, T) with it."
        )


class SinusoidalPositions(nn.Module):
    """``[sin(p · ωᵢ), cos(p · ωᵢ)]`` with ``ωᵢ = 10000^(−2i/C)``: a geometric range of wavelengths.

    Vaswani et al. 2017, section 3.5, sines in the first half of the channels and cosines in the second. With
    ``endpoint`` ``ωᵢ = 10000^(−2i/(C−2))``, as in tensor2tensor and fairseq. Position 0 is the angle of ``offset``.
    """

    def __init__(self, num_positions: int, size: int, offset: int = 0, endpoint: bool = False) -> None:
        super().__init__()
        self.offset, self.endpoint = offset, endpoint
        self.table = nn.Buffer(self.compute(num_positions, size), persistent=False)

    def compute(self, num_positions: int, size: int) -> Tensor:
        """The table ``(num_positions, size)``."""
        return sinusoids(num_positions, size, self.offset, self.endpoint)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """``model.bfloat16()`` rounds the table; ``model.float()`` afterwards has it exact again."""
        super()._apply(fn, recurse)
        if not self.table.is_meta:
            self.table = nn.Buffer(self.compute(*self.table.shape).to(self.table), persistent=False)
        return self

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.table)  # (B, T, C)


def sinusoids(num_positions: int, size: int, offset: int = 0, endpoint: bool = False) -> Tensor:
    """The table ``(num_positions, size)``, computed in float64."""
    frequencies = 10000 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if endpoint:  # in float32 on purpose: published weights were trained with its rounding at far positions
        frequencies = (torch.arange(size // 2).float() * -(math.log(10000) / (size // 2 - 1))).exp()
    angles = torch.arange(offset, offset + num_positions, dtype=frequencies.dtype)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(torch.get_default_dtype())


class LearnedPositions(nn.Embedding):
    """One trained vector a position; position 0 is row ``offset``."""

    def __init__(self, num_positions: int, size: int, offset: int) -> None:
        super().__init__(num_positions + offset, size)
        self.offset = offset

    def forward(self, positions: Tensor) -> Tensor:
        return super().forward(positions + self.offset)  # (B, T, C)


class RotaryEmbedding(nn.Module):
    """``cos(p · ωᵢ)`` and ``sin(p · ωᵢ)``, by which pairs of channels of q and k are turned.

    The product of a turned query and a turned key depends on their distance only. Su et al. 2021 (arXiv:2104.09864).
    Scaled variants (linear, llama3, yarn) are transformers' own.
    """

    # transformers refills these two buffers after a meta-device load; it finds them, the type and the function by name.
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config  # of one side, with its head_dim
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = self._compute()
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    def _compute(self) -> tuple[Tensor, float]:
        return ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)(self.config)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """``model.to(bfloat16)`` moves the frequencies and leaves them in fp32: rounded, far positions would blur."""
        super()._apply(fn, recurse)
        inv_freq = self._compute()[0].to(self.inv_freq.device)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)
        return self

    @staticmethod
    def compute_default_rope_parameters(config: PreTrainedConfig, *_: object) -> tuple[Tensor, float]:
        """``ωᵢ = θ^(−2i/D)``."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        frequencies = config.rope_parameters["rope_theta"] ** -exponents
        return frequencies.float(), 1.0

    @torch.no_grad()
    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # Angles in fp32 at least: a half-precision p · ω would be off by whole turns.
        frequencies = self.inv_freq.to(torch.promote_types(dtype, torch.float32))
        angles = positions[:, None, :, None] * frequencies  # (B, 1, T, D/2)
        angles = torch.cat([angles, angles], dim=-1)  # (B, 1, T, D)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(dtype), sin.to(dtype)


def apply_rotary(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs ``(i, i + D/2)`` of ``x`` (B, H, T, D) by the angles of their positions; the dtype stays."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)  # autocast: x is narrower than the angles
