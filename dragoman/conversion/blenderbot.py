"""Blenderbot.

Pre-norm with a norm after the last layer; learned positions that begin at row 0. In-tree the configuration's
``encoder_no_repeat_ngram_size`` belongs to ``generate()``: it travels in the generation configuration.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from .fairseq_layout import FairseqFamily, both_stacks


class Blenderbot(FairseqFamily):
    model_type = "blenderbot"
    architecture = "BlenderbotForConditionalGeneration"
    tokenizer = "BlenderbotTokenizer"
    constants: ClassVar[Mapping[str, Any]] = {
        **FairseqFamily.constants,
        "position_encoding": "learned",
        "position_offset": 0,
        "norm_placement": "pre",
        "embedding_norm": False,
        "final_norm": True,
    }
    modules: ClassVar[Mapping[str, str]] = {
        **both_stacks("embed_positions", "embedding.positions"),
        **FairseqFamily.modules,
        **both_stacks("layer_norm", "norm"),
    }
