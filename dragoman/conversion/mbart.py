"""mBART: cc25, its translators, and mBART-50.

BART, but pre-norm, with a norm after the last layer.

Labels alone make another decoder input in-tree: each row's last label, wrapped around to its front. With ours it
begins with ``config.decoder_start_token_id``. The two agree as the tokenizers write labels:

- mBART-50 ``[language, …, </s>]``: the start is ``</s>``, as its configuration says; ``forced_bos_token_id``, in the
  generation configuration, chooses the language.
- cc25 ``[…, </s>, language]``: the start is the language, one for all rows. Translators into one language have it in
  their configuration. cc25 itself has none: it is read as ``bos_token_id``, with which ``generate()`` begins in-tree,
  too, and written as none again. Set ``model.config.decoder_start_token_id`` to train, and
  ``model.generation_config.decoder_start_token_id`` to write, or pass ``decoder_start_token_id`` to ``generate()``.
  A batch of several target languages needs ``decoder_input_ids``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers.utils import logging

from ..configuration.configuration_dragoman import DragomanConfig
from .bart import Bart
from .fairseq_layout import both_stacks

logger = logging.get_logger(__name__)


class MBart(Bart):
    model_type = "mbart"
    architecture = "MBartForConditionalGeneration"
    tokenizer = "MBartTokenizer"
    constants: ClassVar[Mapping[str, Any]] = {**Bart.constants, "norm_placement": "pre", "final_norm": True}
    modules: ClassVar[Mapping[str, str]] = {
        **Bart.modules,
        **both_stacks("layer_norm", "norm"),
    }

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        start = config.decoder_start_token_id
        if start is None:
            start = config.bos_token_id
            logger.warning(
                "This mBART names no decoder_start_token_id. Before training on labels, set model.config."
                "decoder_start_token_id to the id of the target language's code; before writing, model."
                "generation_config.decoder_start_token_id, too."
            )
        return super().our_fields(config, tensors) | {"decoder_start_token_id": start}

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        start = config.decoder_start_token_id
        return {"decoder_start_token_id": None if start == config.bos_token_id else start}
