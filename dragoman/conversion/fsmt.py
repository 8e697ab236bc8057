"""FSMT: the WMT19 models of fairseq.

Post-norm, sinusoidal positions that follow the padding (see ``padding_positions``), a vocabulary each for source and
target (``src_vocab_size``, ``tgt_vocab_size``) with the same ids for padding, start and end. The head is the decoder's
``output_projection``; ``last_hidden_state`` in-tree is the logits. What the configuration says of beams and lengths
belongs to ``generate()`` and travels in the generation configuration; ``langs`` belongs to the tokenizer, which keeps
its own, and what convert_to returns says ("en", "de").

Tying: embeddings and head are three tensors, or with ``tie_word_embeddings`` one. Up to transformers 4 the head was
always the decoder's embeddings, and files may hold one of the two; 5.23 draws the other at random. We read the one for
both, which gives the published model; they are not tied, as in 5.23, and drift apart in training.

Positions: in-tree 5.23 trains its tables, though they begin as sinusoids. Ours are fixed while they are sinusoids; a
table that has been trained becomes ``position_encoding="learned"``, and goes back as such.

Masks: in-tree, a forward pass with ``use_cache=True``, the default without labels, hides neither the future nor padding
in the target: it is right for one token at a time only. Ours is right for more; compare with ``use_cache=False``.

Labels: in-tree, labels without ``decoder_input_ids`` are predicted from the shifted *source*, and the decoder input
made of labels begins with each row's last token (its end) and turns −100 in the labels themselves into padding, which
is then learned. Ours begins with ``decoder_start_token_id``, the end token in published models, and leaves them alone.

Vectors: in-tree scales ``inputs_embeds``, and takes their first channel for ids. Ours takes them as they are.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.configuration_dragoman import DragomanConfig
from ..configuration.validation import is_newer
from .fairseq_layout import FairseqFamily, both_stacks
from .families import holds_sinusoids
from .padding_positions import PaddingPositions

EMBEDDINGS, PROJECTION = "model.decoder.embed_tokens.weight", "model.decoder.output_projection.weight"


class FSMT(PaddingPositions):
    model_type = "fsmt"
    architecture = "FSMTForConditionalGeneration"
    tokenizer = "FSMTTokenizer"
    fields: ClassVar[Mapping[str, str]] = {
        **{theirs: ours for theirs, ours in FairseqFamily.fields.items() if theirs != "vocab_size"},
        "tgt_vocab_size": "vocab_size",
    }
    constants: ClassVar[Mapping[str, Any]] = {
        **{name: value for name, value in PaddingPositions.constants.items() if name != "source_vocab_size"},
        "norm_placement": "post",
        "final_norm": False,
    }
    source_embeddings = ("model.encoder.embed_tokens.weight",)
    target_embeddings = (EMBEDDINGS,)
    heads = (PROJECTION,)
    tables = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")

    def read(self, config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> tuple[DragomanConfig, dict[str, Tensor]]:
        if is_old(config) and (EMBEDDINGS in tensors) != (PROJECTION in tensors):
            stored, missing = (EMBEDDINGS, PROJECTION) if EMBEDDINGS in tensors else (PROJECTION, EMBEDDINGS)
            tensors = {**tensors, missing: tensors[stored]}
        return super().read(config, tensors)

    def module_pairs(self, config: DragomanConfig) -> dict[str, str]:
        pairs = super().module_pairs(config)
        if config.position_encoding == "learned":
            tables = both_stacks("embed_positions", "embedding.positions")
            pairs |= {ours: theirs for theirs, ours in tables.items()}
        return pairs

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        fields = super().our_fields(config, tensors)
        offset = fields["position_offset"]
        is_fixed = all(holds_sinusoids(tensors.get(name), offset, endpoint=True) for name in self.tables)
        return fields | {
            "source_vocab_size": config.src_vocab_size if config.src_vocab_size != config.tgt_vocab_size else None,
            "position_encoding": "sinusoidal" if is_fixed else "learned",
            "sinusoidal_endpoint": is_fixed,
        }

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        return super().their_fields(config) | {"src_vocab_size": config.source_vocab_size or config.vocab_size}

    def our_problems(self, config: DragomanConfig) -> list[str]:
        problems, schemes = super().our_problems(config), (("sinusoidal", True), ("learned", False))
        scheme = (config.position_encoding, config.sinusoidal_endpoint)
        if scheme not in schemes:
            options = " or ".join(map(str, schemes))
            problems.append(f"(position_encoding, sinusoidal_endpoint)={scheme}; fsmt has {options} only")
        return problems


def is_old(config: PreTrainedConfig) -> bool:
    """Whether a file was written before transformers 5; the oldest do not say."""
    return is_newer("5.0", than=config.transformers_version or "")
