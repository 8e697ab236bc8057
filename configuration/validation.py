"""Relations between fields that types cannot express. Each check names the field and says what to change."""

from typing import Any

# The largest that make sense, far above any published model: a file that says more is broken, or means harm.
_LARGEST = {
    "vocab_size": 2**24,
    "source_vocab_size": 2**24,
    "hidden_size": 2**17,
    "encoder_num_hidden_layers": 1024,
    "decoder_num_hidden_layers": 1024,
    "encoder_num_attention_heads": 4096,
    "decoder_num_attention_heads": 4096,
    "encoder_num_key_value_heads": 4096,
    "decoder_num_key_value_heads": 4096,
    "head_dim": 2**14,
    "encoder_intermediate_size": 2**20,
    "decoder_intermediate_size": 2**20,
    "max_position_embeddings": 2**24,
    "relative_attention_num_buckets": 2**16,
    "relative_attention_max_distance": 2**24,
    "position_offset": 2**16,
    "num_hidden_layers": 1024,  # of a recurrent model
}
_LARGEST_TABLE = 2**28  # numbers; sinusoids are computed, so no file has to hold them
_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "label_smoothing")
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# The types whose frequencies are fixed once; dynamic and longrope change with the length decoded so far.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ROPE_NUMBERS = (
    "rope_theta factor original_max_position_embeddings attention_factor beta_fast beta_slow low_freq_factor "
    "high_freq_factor mscale mscale_all_dim"
).split()


def is_newer(version: str, than: str) -> bool:
    """Whether ``major.minor`` of one version is after that of another."""

    def parts(text: str) -> list[int]:
        return [int("".join(filter(str.isdecimal, part))[:9] or 0) for part in text.split(".")[:2]]

    return parts(version) > parts(than)


def shorten(value: Any) -> str:
    """A value for an error message, which a file must not be able to fill with pages."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:50]}…"


def check_sizes(config: Any) -> None:
    for name, largest in _LARGEST.items():
        value, smallest = getattr(config, name, None), 0 if name == "position_offset" else 1
        if value is not None and not smallest <= value <= largest:
            bound = f"at least {smallest}" if value < smallest else f"at most {largest}"
            raise ValueError(f"{name} must be {bound}, got {shorten(value)}.")


def check_probabilities(config: Any) -> None:
    for name in _PROBABILITIES:
        if not 0 <= getattr(config, name, 0) < 1:
            raise ValueError(f"{name} is a probability in [0, 1), got {getattr(config, name)}.")


def check_positive(config: Any) -> None:
    for name in ("norm_eps", "attention_scale", "logits_scale", "initializer_range"):
        value = getattr(config, name, None)
        if value is not None and not 0 < value < 1e38:  # what float32 holds
            raise ValueError(f"{name} must be a positive number, got {value}.")


def check_architecture(config: Any) -> None:
    check_sizes(config)
    check_probabilities(config)
    check_positive(config)
    for side in ("encoder", "decoder"):
        heads = getattr(config, f"{side}_num_attention_heads")
        groups = getattr(config, f"{side}_num_key_value_heads")
        if config.head_dim is None and config.hidden_size % heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of {side}_num_attention_heads {heads}: "
                "change one of them, or give head_dim."
            )
        if heads % groups:
            raise ValueError(
                f"{side}_num_key_value_heads {groups} does not divide {side}_num_attention_heads {heads}: "
                "choose a divisor (1 is multi-query attention)."
            )
    if config.norm_bias and config.norm_type == "rms_norm":
        raise ValueError("norm_bias=True needs norm_type='layer_norm': RMSNorm has no bias.")
    if config.norm_before_positions and not config.embedding_norm:
        raise ValueError("norm_before_positions says where the embedding norm stands: set embedding_norm=True, too.")
    if not config.is_encoder_decoder:
        raise ValueError("is_encoder_decoder must be True; for the encoder alone use DragomanEncoderModel.")


def check_positions(config: Any) -> None:
    scheme = config.position_encoding
    if scheme == "sinusoidal" and config.hidden_size % 2:
        raise ValueError(
            "position_encoding='sinusoidal' needs an even hidden_size (sine and cosine pairs), got "
            f"{config.hidden_size}."
        )
    if config.position_offset and scheme not in ("learned", "sinusoidal"):
        raise ValueError(f"position_offset counts rows of a table; with position_encoding={scheme!r} set it to 0.")
    if config.sinusoidal_endpoint and (scheme != "sinusoidal" or config.hidden_size < 4):
        raise ValueError(
            "sinusoidal_endpoint belongs to position_encoding='sinusoidal' with a hidden_size of 4 at least, got "
            f"{scheme!r} and {config.hidden_size}: set it to False."
        )
    rows = config.max_position_embeddings + config.position_offset
    if scheme == "sinusoidal" and rows * config.hidden_size > _LARGEST_TABLE:
        raise ValueError(
            f"position_encoding='sinusoidal' with max_position_embeddings {config.max_position_embeddings} and "
            f"hidden_size {config.hidden_size} needs a table of more than {_LARGEST_TABLE} numbers: choose fewer "
            "positions, or position_encoding='rotary', which needs no table."
        )
    if scheme == "rotary":
        for side in ("encoder", "decoder"):
            head_dim = config.head_dim_of(getattr(config, f"{side}_num_attention_heads"))
            if head_dim % 2:
                raise ValueError(
                    f"position_encoding='rotary' turns pairs of channels: the {side}'s head_dim must be even, got "
                    f"{head_dim}."
                )
        rope_type = (config.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in _ROPE_TYPES:
            raise ValueError(f"rope_parameters: rope_type must be one of {', '.join(_ROPE_TYPES)}, got {rope_type!r}.")
        check_rope(config.rope_parameters or {})
    elif config.rope_parameters:
        raise ValueError(f"rope_parameters belongs to position_encoding='rotary', not {scheme!r}: remove it.")
    if config.relative_attention_per_layer and scheme != "relative":
        raise ValueError(f"relative_attention_per_layer belongs to position_encoding='relative', not {scheme!r}.")
    if scheme == "relative":
        buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        if buckets < 4:
            raise ValueError(
                "relative_attention_num_buckets must be at least 4 (two directions, exact and logarithmic halves), got "
                f"{buckets}."
            )
        if distance <= buckets // 2:
            raise ValueError(
                f"relative_attention_max_distance {distance} must exceed relative_attention_num_buckets / 2 = "
                f"{buckets // 2}, the distances that the decoder counts exactly."
            )


def check_rope(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        if name == "partial_rotary_factor":
            raise ValueError(f"rope_parameters: {name} is not supported; every channel of a head is turned.")
        if name not in _ROPE_NUMBERS and name not in ("rope_type", "truncate"):
            raise ValueError(f"rope_parameters has no {shorten(name)}; it holds rope_type, {', '.join(_ROPE_NUMBERS)}.")
        if name in _ROPE_NUMBERS and not (type(value) in (int, float) and 0 < value < 1e38):
            raise ValueError(f"rope_parameters: {name} must be a positive number, got {shorten(value)}.")


def check_tying(config: Any) -> None:
    source = config.source_vocab_size
    if config.share_embeddings and source is not None and source != config.vocab_size:
        raise ValueError(
            f"share_embeddings=True needs one vocabulary, got source_vocab_size {source} and vocab_size "
            f"{config.vocab_size}: set share_embeddings=False."
        )


def check_classifier(config: Any) -> None:
    source = config.source_vocab_size
    if config.problem_type not in (None, *_PROBLEM_TYPES):
        raise ValueError(
            f"problem_type must be None or one of {', '.join(_PROBLEM_TYPES)}, got {shorten(config.problem_type)}."
        )
    if config.classifier_backbone == "encoder_decoder" and source not in (None, config.vocab_size):
        raise ValueError(
            "classifier_backbone='encoder_decoder' reads the source on both sides and needs one vocabulary, got "
            f"source_vocab_size {source} and vocab_size {config.vocab_size}: choose classifier_backbone='encoder'."
        )


def check_special_tokens(config: Any) -> None:
    target, source = config.vocab_size, config.source_vocab_size or config.vocab_size
    limits = {
        "pad_token_id": min(target, source),  # padding stands on both sides
        "bos_token_id": target,
        "eos_token_id": target,
        "decoder_start_token_id": target,
    }
    for name, limit in limits.items():
        value = getattr(config, name)
        if value is not None and not 0 <= value < limit:
            raise ValueError(f"{name} {value} is outside the vocabulary, which has ids 0 to {limit - 1}.")
    if config.eos_token_id == config.pad_token_id:
        raise ValueError(
            f"eos_token_id and pad_token_id are both {config.pad_token_id}: the end of a sequence could not be told "
            "from padding. Give the tokenizer a pad token of its own."
        )
