"""What a Dragoman model is. One flat, strict dataclass: a wrong value raises where it is written."""

# No `from __future__ import annotations` here: strict dataclasses check real types, and skip strings.
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.modeling_rope_utils import RopeParameters

from .base_configuration import VERSION, DragomanBaseConfig
from .validation import check_architecture, check_classifier, check_positions, check_special_tokens, check_tying


@strict
class DragomanConfig(DragomanBaseConfig):
    """An encoder-decoder Transformer. Bare, it is the base model of Vaswani et al. 2017 (arXiv:1706.03762).

    Sizes are counts; probabilities lie in [0, 1). ``vocab_size`` is the target side, that of the logits.

    Raises:
        ValueError, StrictDataclassFieldValidationError: for a wrong type, an unknown value or keyword, and
            options that contradict each other; the message names the field and the remedy.
    """

    model_type: ClassVar[str] = "dragoman"
    # What generic code reads. The unprefixed names mean the decoder, from which caches are sized.
    attribute_map: ClassVar[dict[str, str]] = {
        "d_model": "hidden_size",
        "num_hidden_layers": "decoder_num_hidden_layers",
        "num_attention_heads": "decoder_num_attention_heads",
        "num_key_value_heads": "decoder_num_key_value_heads",
        "intermediate_size": "decoder_intermediate_size",
        "encoder_layers": "encoder_num_hidden_layers",
        "decoder_layers": "decoder_num_hidden_layers",
        "encoder_attention_heads": "encoder_num_attention_heads",
        "decoder_attention_heads": "decoder_num_attention_heads",
        "encoder_ffn_dim": "encoder_intermediate_size",
        "decoder_ffn_dim": "decoder_intermediate_size",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *DragomanBaseConfig.keys_to_ignore_at_inference,
        "pooling_weights",
    ]
    entry_points: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dragoman.DragomanConfig",
        "AutoModel": "modeling_dragoman.DragomanModel",
        "AutoModelForTextEncoding": "modeling_dragoman.DragomanEncoderModel",
        "AutoModelForSeq2SeqLM": "modeling_conditional_generation.DragomanForConditionalGeneration",
        "AutoModelForSequenceClassification": "modeling_sequence_classification.DragomanForSequenceClassification",
    }
    is_encoder_decoder: bool = True
    use_cache: bool = True

    # Sizes
    vocab_size: int = 37000
    source_vocab_size: int | None = None  # None: one vocabulary for both sides
    hidden_size: int = 512
    encoder_num_hidden_layers: int = 6
    decoder_num_hidden_layers: int = 6
    encoder_num_attention_heads: int = 8
    decoder_num_attention_heads: int = 8
    # Grouped-query attention, Ainslie et al. 2023 (arXiv:2305.13245): heads 0 1 2 3 read key/value heads 0 0 1 1
    encoder_num_key_value_heads: int | None = None  # None: as many as heads; 1: multi-query
    decoder_num_key_value_heads: int | None = None
    head_dim: int | None = None  # None: hidden_size / heads
    encoder_intermediate_size: int = 2048
    decoder_intermediate_size: int = 2048

    # Feed-forward
    hidden_act: Literal["relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish"] = "relu"
    gated_feed_forward: bool = False

    # Positions
    position_encoding: Literal["sinusoidal", "learned", "rotary", "alibi", "relative", "none"] = "sinusoidal"
    max_position_embeddings: int = 1024  # a hard limit for sinusoidal and learned; the others have none
    position_offset: int = 0  # rows before position 0 in a table: 2 for BART (learned), M2M100, FSMT (sinusoidal)
    sinusoidal_endpoint: bool = False  # M2M100, FSMT: wavelengths end at 2π · 10000, not just before it
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_attention_per_layer: bool = False  # umT5: every layer owns its bias; T5: one a stack

    # Norms
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_placement: Literal["pre", "post"] = "post"
    norm_eps: float | int = 1e-5
    norm_bias: bool | None = None  # None: layer_norm has one, rms_norm has none
    embedding_norm: bool = False  # a norm on the embeddings: BART
    norm_before_positions: bool = False  # Blenderbot-small: the decoder's embedding norm sees bare token vectors
    final_norm: bool | None = None  # a norm after the last layer. None: with pre-norm only

    # Biases and scales
    attention_bias: bool = False
    feed_forward_bias: bool = True
    attention_scale: float | int | None = None  # None: 1/sqrt(head_dim); 1.0: T5
    logits_bias: bool = False  # Marian, BART: final_logits_bias, which is not trained
    logits_scale: float | int = 1.0  # tied T5: hidden_size ** -0.5
    scale_embedding: bool = True  # token vectors times sqrt(hidden_size)
    train_pad_embedding: bool = True  # False: Marian, Pegasus, BART, ...: as input, the pad token is fixed

    # Tying
    tie_word_embeddings: bool = True  # decoder input and head
    share_embeddings: bool = True  # encoder input and decoder input

    # Regularisation
    dropout: float | int = 0.1  # embeddings and residual branches
    attention_dropout: float | int = 0.0  # anything else costs SDPA its fast kernel
    activation_dropout: float | int = 0.0
    label_smoothing: float | int = 0.0  # in training; evaluation reports the plain negative log-likelihood

    # Classification; the classes are transformers' num_labels, id2label and problem_type
    classifier_backbone: Literal["encoder", "encoder_decoder"] = "encoder"
    pooling: Literal["mean", "first", "last_eos", "attention"] = "mean"

    # Special tokens, the same ids on both sides
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 1

    initializer_range: float | int | None = None  # None: by role, see modeling/initialization.py
    dragoman_version: str = VERSION  # of the code that wrote the file

    def __post_init__(self, **kwargs: Any) -> None:
        no_rope = self.rope_parameters is None and self.position_encoding != "rotary"
        super().__post_init__(**kwargs)
        if no_rope:
            self.rope_parameters = None  # transformers fills in a default for whoever has the field

    def derived_fields(self) -> dict[str, Any]:
        """What the fields that may be None stand for."""
        return {
            "encoder_num_key_value_heads": self.encoder_num_attention_heads,
            "decoder_num_key_value_heads": self.decoder_num_attention_heads,
            "norm_bias": self.norm_type == "layer_norm",
            "final_norm": self.norm_placement == "pre",
        }

    def validate_architecture(self) -> None:
        check_architecture(self)
        check_positions(self)
        check_tying(self)
        check_classifier(self)

    def validate_token_ids(self) -> None:
        check_special_tokens(self)

    def validate_rope(self) -> None:
        try:
            super().validate_rope()
        except KeyError as error:  # for what is missing
            raise ValueError(error.args[0]) from error

    def head_dim_of(self, num_attention_heads: int) -> int:
        return self.head_dim or self.hidden_size // num_attention_heads

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, preset: "str | DragomanConfig" = "tiny", **overrides: Any
    ) -> "DragomanConfig":
        """Fill vocabulary sizes and special token ids from a tokenizer.

        ``preset`` is the name of a function in :mod:`dragoman.presets`, or a configuration to start from.

        Raises:
            ValueError: for an unknown preset, a tokenizer without padding or end token, or a ``vocab_size`` that
                does not hold the tokenizer's ids.
        """
        from .presets import fit

        return fit(cls, tokenizer, preset, overrides)
