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
pooling query     0                                begins as the mean
recurrent         1/√(3 C), uniform                torch's own
================  ===============================  ==============================================

Norm weights are 1, biases 0. Branch outputs that shrink with depth: Zhang et al. 2019 (arXiv:1908.11365).
A configuration with ``initializer_range`` draws every matrix with that standard deviation instead.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import initialization as init

from .embeddings import TokenEmbedding
from .pooling import Pooling
from .position_biases import AlibiBias, RelativeBias, alibi_slopes
from .position_encodings import LearnedPositions, SinusoidalPositions


def initialize(module: nn.Module, config: Any) -> None:
    """Fill the parameters and buffers of ``module``, by its role."""
    fixed, per_channel = config.initializer_range, config.hidden_size**-0.5
    if isinstance(module, SinusoidalPositions):
        init.copy_(module.table, module.compute(*module.table.shape))
    elif isinstance(module, AlibiBias):
        init.copy_(module.slopes, alibi_slopes(len(module.slopes)))
    elif isinstance(module, Pooling):
        if module.query is not None:
            init.zeros_(module.query)
    elif isinstance(module, LearnedPositions):
        init.normal_(module.weight, std=fixed or (1.0 if getattr(config, "scale_embedding", False) else per_channel))
    elif isinstance(module, RelativeBias | TokenEmbedding):
        init.normal_(module.weight, std=fixed or per_channel)
    elif isinstance(module, nn.Linear):
        init.normal_(module.weight, std=fixed or (module.in_features * getattr(module, "branches", 1)) ** -0.5)
    elif isinstance(module, nn.RNNBase):
        for parameter in module.parameters():
            init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
            if fixed and parameter.dim() > 1:
                init.normal_(parameter, std=fixed)


def mark_branch_outputs(projections: Iterable[nn.Linear], branches: int) -> None:
    """Tell the last projection of a residual branch how many such branches its stack adds up.

    The projection has to know: transformers initialises no module that owns no parameter, such as a layer.
    """
    for projection in projections:
        projection.branches = branches  # type: ignore[assignment]
