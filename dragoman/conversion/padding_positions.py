"""Positions that follow the padding, in fairseq's sinusoids: what M2M100 and FSMT have in common.

Positions count the tokens of a row, and begin in the row of the table after the one numbered ``pad_token_id``. In-tree
tells padding by its id, ours by the mask: the same, unless a mask hides tokens or shows padding, or a model writes
padding within a sentence. With a cache in-tree counts columns, so that a target prefix padded on the left comes out
differently there; ours counts tokens. Beyond ``max_position_embeddings`` the table grows in-tree; ours raises.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..configuration.configuration_dragoman import DragomanConfig
from .fairseq_layout import FairseqFamily


class PaddingPositions(FairseqFamily):
    """No ``final_logits_bias``, and no norm on the embeddings."""

    constants: ClassVar[Mapping[str, Any]] = {**FairseqFamily.constants, "embedding_norm": False, "logits_bias": False}
    parameters: ClassVar[Mapping[str, str]] = {}

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"position_offset": (config.pad_token_id or 0) + 1}  # None is a problem of our configuration

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        return {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}

    def problems_of(self, config: Any) -> list[str]:
        if config.decoder_start_token_id != config.pad_token_id:
            return []
        return [
            f"decoder_start_token_id and pad_token_id are both {config.pad_token_id}; as padding the start of a target "
            f"would have no position in {self.model_type}"
        ]

    def our_problems(self, config: DragomanConfig) -> list[str]:
        problems, wanted = self.problems_of(config), config.pad_token_id + 1
        if config.position_offset != wanted:
            problems.append(
                f"position_offset={config.position_offset}; {self.model_type} has pad_token_id + 1 = {wanted}"
            )
        return problems
