"""Initial weights by role, in one table.

================  ===============================  ==============================================
role              standard deviation               why
================  ===============================  ==============================================
token vectors     1/√C                             unit size once scaled; unit logits when tied
learned position  that of a token vector as added  neither drowns the other
into a branch     1/√fan_in                        keeps the size of what passes
out of a branch   1/√(fan_in · branches)           the sum of a stack's branches has unit size
free head         1/√C                             unit logits
relative bias     1/√C                             begins near no bias
================  ===============================  ==============================================

Norm weights are 1, biases 0. Branch outputs that shrink with depth: Zhang et al. 2019 (arXiv:1908.11365).
A configuration with ``initializer_range`` draws every matrix with that standard deviation instead.
"""

from torch import nn
from transformers import initialization as init

from ..configuration.configuration_dragoman import DragomanConfig
from .attention import Attention
from .decoder import DecoderLayer
from .embeddings import TokenEmbedding
from .encoder import EncoderLayer
from .feed_forward import FeedForward
from .position_biases import AlibiBias, RelativeBias, alibi_slopes
from .position_encodings import LearnedPositions, SinusoidalPositions, sinusoids


def initialize(module: nn.Module, config: DragomanConfig) -> None:
    """Fill what ``module`` has a role for. Children come before their parents, so a layer has the last word."""
    fixed, per_channel = config.initializer_range, config.hidden_size**-0.5
    if isinstance(module, SinusoidalPositions):
        init.copy_(module.table, sinusoids(*module.table.shape))
    elif isinstance(module, AlibiBias):
        init.copy_(module.slopes, alibi_slopes(len(module.slopes)))
    elif isinstance(module, LearnedPositions):
        init.normal_(module.weight, std=fixed or (1.0 if config.scale_embedding else per_channel))
    elif isinstance(module, RelativeBias | TokenEmbedding):
        init.normal_(module.weight, std=fixed or per_channel)
    elif isinstance(module, nn.Linear):
        init.normal_(module.weight, std=fixed or module.in_features**-0.5)
    elif isinstance(module, EncoderLayer):
        _shrink_outputs(module, 2 * config.encoder_num_hidden_layers, fixed)
    elif isinstance(module, DecoderLayer):
        _shrink_outputs(module, 3 * config.decoder_num_hidden_layers, fixed)


def _shrink_outputs(layer: nn.Module, branches: int, fixed: float | None) -> None:
    for part in layer.children():
        if isinstance(part, Attention | FeedForward):
            output = part.o_proj if isinstance(part, Attention) else part.down_proj
            init.normal_(output.weight, std=fixed or (output.in_features * branches) ** -0.5)
