"""What a recurrent encoder-decoder is, without and with attention: the models that came before the Transformer."""

# No `from __future__ import annotations` here: strict dataclasses check real types, and skip strings.
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .base_configuration import VERSION, DragomanBaseConfig
from .validation import check_positive, check_probabilities, check_sizes, check_special_tokens, check_tying


@strict
class DragomanRecurrentConfig(DragomanBaseConfig):
    """A recurrent encoder-decoder: Sutskever et al. 2014 (arXiv:1409.3215), Cho et al. 2014 (arXiv:1406.1078).

    ``attention`` says how the decoder looks back: ``none``, at the encoder's last state only; ``additive``, as in
    Bahdanau et al. 2015 (arXiv:1409.0473), before each step; ``dot``, ``general`` and ``concat``, as in Luong et al.
    2015 (arXiv:1508.04025), after it.

    Raises:
        ValueError, StrictDataclassFieldValidationError: for a wrong type, an unknown value or keyword, and
            options that contradict each other; the message names the field and the remedy.
    """

    model_type: ClassVar[str] = "dragoman_recurrent"
    attribute_map: ClassVar[dict[str, str]] = {"d_model": "hidden_size"}
    entry_points: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dragoman_recurrent.DragomanRecurrentConfig",
        "AutoModel": "modeling_dragoman_recurrent.DragomanRecurrentModel",
        "AutoModelForSeq2SeqLM": "modeling_dragoman_recurrent.DragomanRecurrentForConditionalGeneration",
    }
    is_encoder_decoder: bool = True
    use_cache: bool = True

    # Sizes
    vocab_size: int = 37000
    source_vocab_size: int | None = None  # None: one vocabulary for both sides
    hidden_size: int = 512  # of embeddings and states; with two directions, of both together
    num_hidden_layers: int = 1  # on each side: the decoder's layers begin where the encoder's ended

    # Recurrence and attention
    cell: Literal["gru", "lstm"] = "gru"
    bidirectional: bool = True  # the encoder reads both ways
    attention: Literal["none", "additive", "dot", "general", "concat"] = "additive"
    input_feeding: bool = False  # Luong et al. 2015, section 3.3: a step sees what the one before it attended to

    # Tying
    logits_bias: bool = False  # g2p-en, whose weights bring it; it is not trained
    tie_word_embeddings: bool = True  # decoder input and head
    share_embeddings: bool = True  # encoder input and decoder input

    # Regularisation
    dropout: float | int = 0.1  # embeddings, between layers, before the head
    label_smoothing: float | int = 0.0  # in training; evaluation reports the plain negative log-likelihood

    # Special tokens, the same ids on both sides
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 1

    initializer_range: float | int | None = None  # None: by role, see modeling/initialization.py
    dragoman_version: str = VERSION  # of the code that wrote the file

    def validate_architecture(self) -> None:
        check_sizes(self)
        check_probabilities(self)
        check_positive(self)
        check_tying(self)
        if self.bidirectional and self.hidden_size % 2:
            raise ValueError(
                f"bidirectional=True gives each direction half of hidden_size {self.hidden_size}: make it even."
            )
        if self.input_feeding and self.attention in ("none", "additive"):
            raise ValueError(
                f"input_feeding belongs to attention 'dot', 'general' or 'concat', not {self.attention!r}: there is "
                + ("nothing to feed." if self.attention == "none" else "a step sees its own context already.")
            )
        if not self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder must be True.")

    def validate_token_ids(self) -> None:
        check_special_tokens(self)

    @property
    def runs_at_once(self) -> bool:
        """Whether no step's input depends on what the step before it gave, so that a known target is one call."""
        return self.attention != "additive" and not self.input_feeding

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, preset: "DragomanRecurrentConfig | None" = None, **overrides: Any
    ) -> "DragomanRecurrentConfig":
        """Fill vocabulary sizes and special token ids from a tokenizer; the rest from ``preset`` and ``overrides``.

        Raises:
            ValueError: for a tokenizer without padding or end token, or a ``vocab_size`` that does not hold its ids.
        """
        from .presets import fit

        return fit(cls, tokenizer, preset or cls(), overrides)
