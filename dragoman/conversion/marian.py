"""Marian: OPUS-MT.

Post-norm, sinusoidal positions with sines in the first half of the channels and cosines in the second, which in-tree
keeps as a parameter that is not trained. The start token is the pad token; as input its row is not trained either.
Source and target may have a vocabulary each (``share_encoder_decoder_embeddings=False``). Published models were
trained with a bias of the logits; in-tree it is ``final_logits_bias``, a buffer.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..configuration.configuration_dragoman import DragomanConfig
from .fairseq_layout import FairseqFamily


class Marian(FairseqFamily):
    model_type = "marian"
    architecture = "MarianMTModel"
    tokenizer = "MarianTokenizer"
    fields: ClassVar[Mapping[str, str]] = {
        **{theirs: ours for theirs, ours in FairseqFamily.fields.items() if theirs != "vocab_size"},
        "decoder_vocab_size": "vocab_size",
    }
    constants: ClassVar[Mapping[str, Any]] = {
        **{name: value for name, value in FairseqFamily.constants.items() if name != "source_vocab_size"},
        "position_encoding": "sinusoidal",
        "position_offset": 0,
        "sinusoidal_endpoint": False,
        "norm_placement": "post",
        "embedding_norm": False,
        "final_norm": False,
        "train_pad_embedding": False,
    }
    ties = ((True, True), (False, True), (False, False))
    tables = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        source = config.vocab_size if config.vocab_size != config.decoder_vocab_size else None
        return super().our_fields(config, tensors) | {"source_vocab_size": source}

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.source_vocab_size or config.vocab_size,
            "share_encoder_decoder_embeddings": config.share_embeddings,
        }
