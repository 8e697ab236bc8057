"""M2M100, and the dense models of NLLB, whose ``model_type`` is the same.

Pre-norm with a norm after the last layer, sinusoidal positions that follow the padding (see ``padding_positions``);
their table is no parameter, but old files hold it. There is no bias of the logits. The language of the target is the
first token written: ``forced_bos_token_id`` of ``generate()`` or of the generation configuration, an id that the
tokenizer knows.

In-tree, LayerDrop is on by default (0.05); ours has none, and a model made of ours says 0. In float16 the in-tree
encoder clips states beyond 64,504; ours does not. Given ``inputs_embeds``, in-tree positions count columns.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from .fairseq_layout import FairseqFamily, both_stacks
from .padding_positions import PaddingPositions


class M2M100(PaddingPositions):
    model_type = "m2m_100"
    architecture = "M2M100ForConditionalGeneration"
    tokenizer = "M2M100Tokenizer"
    constants: ClassVar[Mapping[str, Any]] = {
        **PaddingPositions.constants,
        "position_encoding": "sinusoidal",
        "sinusoidal_endpoint": True,
        "norm_placement": "pre",
        "final_norm": True,
    }
    modules: ClassVar[Mapping[str, str]] = {**FairseqFamily.modules, **both_stacks("layer_norm", "norm")}
    tables = ("model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights")
