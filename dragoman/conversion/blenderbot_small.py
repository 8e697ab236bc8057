"""Blenderbot-small, of 90 million parameters; its ``model_type`` has a hyphen.

BART with positions that begin at row 0, and a decoder that normalises bare token vectors, then adds positions; the
encoder normalises the sum. With ``scale_embedding``, which the published model has, the in-tree class of transformers
5.23 scales the encoder's vectors only, and so do we. The published decoder scaled its own too: a factor that the norm
takes out again, but for its eps.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from .bart import Bart


class BlenderbotSmall(Bart):
    model_type = "blenderbot-small"
    architecture = "BlenderbotSmallForConditionalGeneration"
    tokenizer = "BlenderbotSmallTokenizer"
    constants: ClassVar[Mapping[str, Any]] = {**Bart.constants, "position_offset": 0, "norm_before_positions": True}
