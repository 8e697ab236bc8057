"""BART.

Post-norm, a norm on the embeddings, learned positions that begin at row 2 of their table. What old configurations say
of norms (``normalize_before``, ``add_final_layer_norm``, ...) the in-tree class does not read, and neither do we.

Without labels and ``decoder_input_ids`` the in-tree class writes what it reads, shifted right; ours asks for either.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from .fairseq_layout import FairseqFamily, both_stacks


class Bart(FairseqFamily):
    model_type = "bart"
    architecture = "BartForConditionalGeneration"
    tokenizer = "BartTokenizer"
    constants: ClassVar[Mapping[str, Any]] = {
        **FairseqFamily.constants,
        "position_encoding": "learned",
        "position_offset": 2,
        "norm_placement": "post",
        "embedding_norm": True,
        "final_norm": False,
    }
    modules: ClassVar[Mapping[str, str]] = {
        **both_stacks("embed_positions", "embedding.positions"),
        **both_stacks("layernorm_embedding", "embedding.norm"),
        **FairseqFamily.modules,
    }
