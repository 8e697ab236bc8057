"""Pegasus.

Pre-norm with a norm after the last layer, and Marian's positions: sines in the first half of the channels, cosines in
the second, in-tree a parameter that is not trained. The start token is the pad token. There is no ``bos_token_id``;
one that an old configuration has is kept.

The in-tree decoder scales ``decoder_inputs_embeds`` (with ``scale_embedding``); ours takes them as they are, on both
sides.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..configuration.configuration_dragoman import DragomanConfig
from .fairseq_layout import FairseqFamily, both_stacks


class Pegasus(FairseqFamily):
    model_type = "pegasus"
    architecture = "PegasusForConditionalGeneration"
    tokenizer = "PegasusTokenizer"
    fields: ClassVar[Mapping[str, str]] = {
        theirs: ours for theirs, ours in FairseqFamily.fields.items() if theirs != "bos_token_id"
    }
    constants: ClassVar[Mapping[str, Any]] = {
        **FairseqFamily.constants,
        "position_encoding": "sinusoidal",
        "position_offset": 0,
        "sinusoidal_endpoint": False,
        "norm_placement": "pre",
        "embedding_norm": False,
        "final_norm": True,
    }
    modules: ClassVar[Mapping[str, str]] = {**FairseqFamily.modules, **both_stacks("layer_norm", "norm")}
    tables = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().our_fields(config, tensors) | {"bos_token_id": getattr(config, "bos_token_id", None)}

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        return {} if config.bos_token_id is None else {"bos_token_id": config.bos_token_id}
