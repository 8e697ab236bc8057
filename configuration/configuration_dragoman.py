"""What a Dragoman model is. One flat, strict dataclass: a wrong value raises where it is written."""

# No `from __future__ import annotations` here: strict dataclasses check real types, and skip strings.
import difflib
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils import logging

from .file_validation import check_file
from .validation import check_architecture, check_positions, check_special_tokens, check_tying, is_newer

VERSION = "0.1.0"

logger = logging.get_logger(__name__)

# What transformers itself passes through a configuration's constructor, or writes into config.json.
_TRANSFORMERS_KEYWORDS = frozenset(
    "_attn_implementation _attn_implementation_internal _commit_hash _experts_implementation "
    "_experts_implementation_internal _name_or_path _output_attentions attn_implementation auto_map "
    "custom_pipelines experts_implementation finetuning_task model_type name_or_path num_labels "
    "output_attentions quantization_config task_specific_params torch_dtype".split()
)


@strict
class DragomanConfig(PreTrainedConfig):
    """An encoder-decoder Transformer. Bare, it is the base model of Vaswani et al. 2017 (arXiv:1706.03762).

    Sizes are counts; probabilities lie in [0, 1). ``vocab_size`` is the target side, that of the logits.

    Raises:
        ValueError, StrictDataclassFieldValidationError: for a wrong type, an unknown value or keyword, and
            options that contradict each other; the message names the field and the remedy.
    """

    model_type: ClassVar[str] = "dragoman"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "encoder_last_hidden_state"]
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
    # What the Auto classes find in a folder that carries this code: config.json's auto_map.
    entry_points: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dragoman.DragomanConfig",
        "AutoModel": "modeling_dragoman.DragomanModel",
        "AutoModelForTextEncoding": "modeling_dragoman.DragomanEncoderModel",
        "AutoModelForSeq2SeqLM": "modeling_conditional_generation.DragomanForConditionalGeneration",
    }
    export_code: ClassVar[Callable[..., Any] | None] = None  # set by `import dragoman`
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
    norm_before_positions: bool = False  # Blenderbot-small: the decoder's embedding norm sees no positions
    final_norm: bool | None = None  # a norm after the last layer. None: with pre-norm only

    # Biases and scales
    attention_bias: bool = False
    feed_forward_bias: bool = True
    attention_scale: float | int | None = None  # None: 1/sqrt(head_dim); 1.0: T5
    logits_bias: bool = False  # Marian, BART: final_logits_bias, which is not trained
    logits_scale: float | int = 1.0  # tied T5: hidden_size ** -0.5
    scale_embedding: bool = True  # token vectors times sqrt(hidden_size)
    train_pad_embedding: bool = True  # False: Marian, Pegasus, whose start token is the pad token and as input is fixed

    # Tying
    tie_word_embeddings: bool = True  # decoder input and head
    share_embeddings: bool = True  # encoder input and decoder input

    # Regularisation
    dropout: float | int = 0.1  # embeddings and residual branches
    attention_dropout: float | int = 0.0  # anything else costs SDPA its fast kernel
    activation_dropout: float | int = 0.0
    label_smoothing: float | int = 0.0  # in training; evaluation reports the plain negative log-likelihood

    # Special tokens, the same ids on both sides
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 1

    initializer_range: float | int | None = None  # None: by role, see modeling/initialization.py
    dragoman_version: str = VERSION  # of the code that wrote the file

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = self._refuse_unknown_keywords(kwargs)
        self.dragoman_version = VERSION
        for name, value in self.derived_fields().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
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

    def _refuse_unknown_keywords(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        names = [field.name for field in fields(self)]
        unknown = [name for name in kwargs if name not in _TRANSFORMERS_KEYWORDS]
        if unknown and is_newer(self.dragoman_version, VERSION):
            logger.warning(f"Dragoman {VERSION} ignores what it does not know: {', '.join(unknown)}.")
            return {name: value for name, value in kwargs.items() if name not in unknown}
        for name in unknown:
            if name in self.attribute_map:
                sides = [n for n in names if n.endswith(f"coder_{name}")] or [self.attribute_map[name]]
                hint = f"It is a name for reading only; set {' and '.join(sides)}."
            else:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
                hint = f"Did you mean {near[0]}?" if near else f"Its fields are {', '.join(names)}."
                if hasattr(GenerationConfig, name) or name in vars(GenerationConfig()):
                    hint = "It is a generation setting: set it in model.generation_config."
                elif name in ("rope_theta", "rope_scaling"):
                    hint = "It belongs into rope_parameters."
            raise ValueError(f"{type(self).__name__} has no field {name!r}. {hint}")
        return kwargs

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """With the plugin imported, write the code that loads the folder without it, too."""
        auto_map = self.entry_points if self.export_code is None else self.export_code(save_directory)
        if auto_map is not None:
            self.auto_map = dict(auto_map)
        super().save_pretrained(save_directory, **kwargs)
        if push_to_hub:  # transformers would push what changes from here on, without the code
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        warning = check_file(config_dict, VERSION)
        if warning is not None:
            logger.warning(warning)
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        check_architecture(self)
        check_positions(self)
        check_tying(self)

    def validate_token_ids(self) -> None:
        check_special_tokens(self)

    @property
    def output_attentions(self) -> Any:
        """Every attention implementation returns weights on request here, so nothing is refused."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: Any) -> None:
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        pass

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
