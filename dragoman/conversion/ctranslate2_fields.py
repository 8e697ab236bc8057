"""What a CTranslate2 model is, said in the fields of a configuration; and what Dragoman has no field for."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration.configuration_dragoman import DragomanConfig
from ..modeling.position_encodings import sinusoids
from .ctranslate2_files import EngineModel
from .ctranslate2_layout import ENCODINGS, RELATIVE_BIAS
from .ctranslate2_tokens import TokenOrder

ACTIVATIONS = {0: "relu", 1: "gelu_pytorch_tanh", 2: "silu", 3: "gelu"}
SIDES = ("encoder", "decoder")
_DEFAULT_HEADS = {"TransformerSpec": 8, "TransformerBase": 8, "TransformerBig": 16}  # of files that do not say
_NEWEST_REVISION = 7
# Of no consequence: which attention counts as the alignment, and how several source embeddings would be merged.
_IGNORED = {
    *(f"{side}{name}" for side in ("", "decoder/") for name in ("alignment_layer", "alignment_heads")),
    *("encoder/multi_query_attention", "embeddings_merge", "encoder/embeddings_merge"),
    *("decoder/alibi_use_positive_positions", "decoder/scale_alibi"),
}


def read_fields(
    engine: EngineModel, order: TokenOrder, variables: dict[str, Tensor]
) -> tuple[DragomanConfig, dict[str, Tensor], list[str]]:
    """The configuration, the tensors left to load, and all reasons why the model cannot be one of Dragoman.

    Raises:
        ValueError: for another kind of model, and where too little is there to tell what it is.
    """
    if engine.specification not in _DEFAULT_HEADS or not 2 <= engine.revision <= _NEWEST_REVISION:
        raise ValueError(
            f"The model is {engine.specification!r:.60}, revision {engine.revision}; what can be read: "
            f"{', '.join(_DEFAULT_HEADS)}, revision 2 to {_NEWEST_REVISION}."
        )
    tensors = {name: value for name, value in variables.items() if value.dim()}
    reading = _Reading({name: value.item() for name, value in variables.items() if not value.dim()})
    try:
        fields = {
            **_sizes(reading, tensors, _DEFAULT_HEADS[engine.specification]),
            **_parts(reading, tensors),
            **_positions(reading, tensors),
            **_vocabularies(engine, order, tensors),
        }
    except KeyError as error:
        raise ValueError(f"model.bin has no variable {error}: it is not a whole encoder-decoder.") from error
    default_eps = 1e-5 if fields["norm_type"] == "layer_norm" else 1e-6  # the engine's
    fields["norm_eps"] = engine.settings.get("layer_norm_epsilon") or default_eps
    left = sorted(set(reading.attributes) - _IGNORED)
    if left:
        reading.problems.append(f"Dragoman has no option for {', '.join(left)}")
    try:
        return DragomanConfig(**fields), tensors, reading.problems
    except StrictDataclassError as error:  # a number where another kind belongs
        raise ValueError(f"model.bin does not describe a model: {error}") from error


class _Reading:
    """Attributes are used up as they are read, so that what is left over is what was not understood."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self.problems: list[str] = []
        self.head_dims: list[int] = []

    def one(self, names: Iterable[str], default: Any) -> Any:
        """The value that all of them have."""
        found = {name: self.attributes.pop(name, default) for name in names}
        if len(set(found.values())) > 1:
            self.problems.append(f"Dragoman needs one value for all of these: {found}")
        return next(iter(found.values()))

    def both_sides(self, name: str, default: Any) -> Any:
        shared = self.attributes.pop(name, default)  # before revision 5
        return self.one([f"{side}/{name}" for side in SIDES], shared)

    def agree(self, what: str, values: Iterable[Any]) -> Any:
        values = list(values)
        if len(set(values)) > 1:
            self.problems.append(f"encoder and decoder differ in {what}: {values[0]} and {values[1]}")
        return values[0]


def _layers(tensors: dict[str, Tensor], side: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(rf"{side}/layer_(\d+)/", name))})


def _attentions(tensors: dict[str, Tensor], side: str) -> list[str]:
    kinds = ("self_attention",) if side == "encoder" else ("self_attention", "attention")
    return [f"{side}/layer_{i}/{kind}" for i in range(_layers(tensors, side)) for kind in kinds]


def _sizes(reading: _Reading, tensors: dict[str, Tensor], default_heads: int) -> dict[str, Any]:
    hidden = tensors["decoder/embeddings/weight"].shape[1]
    default_heads = reading.attributes.pop("num_heads", default_heads)
    fields: dict[str, Any] = {"hidden_size": hidden}
    for side in SIDES:
        heads = reading.attributes.pop(f"{side}/num_heads", default_heads)
        scopes = _attentions(tensors, side)
        fields[f"{side}_num_hidden_layers"] = _layers(tensors, side)
        fields[f"{side}_num_attention_heads"] = heads
        fields[f"{side}_num_key_value_heads"] = reading.one([f"{s}/num_heads_kv" for s in scopes] or [""], None)
        fields[f"{side}_intermediate_size"] = tensors[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
        reading.one([f"{s}/head_dim" for s in scopes], None)
        reading.head_dims.append(tensors[f"{side}/layer_0/self_attention/linear_1/weight"].shape[1] // max(heads, 1))
    usual = [hidden // max(fields[f"{side}_num_attention_heads"], 1) for side in SIDES]
    if reading.head_dims != usual:
        fields["head_dim"] = reading.agree("the size of a head", reading.head_dims)
    return fields


def _parts(reading: _Reading, tensors: dict[str, Tensor]) -> dict[str, Any]:
    def has(name: str) -> bool:
        return bool(reading.agree(name, [f"{side}/{name}" in tensors for side in SIDES]))

    activation = reading.both_sides("activation", 0)
    if activation not in ACTIVATIONS:
        reading.problems.append(f"Dragoman does not have the activation number {activation}")
    if reading.one(["decoder/alibi"], 0):
        reading.problems.append("ALiBi stands on the side of the decoder only")
    if reading.one(["decoder/start_from_zero_embedding"], 0):
        reading.problems.append("decoding starts from a vector of zeros, not from a token (Marian)")
    everywhere = [scope for side in SIDES for scope in _attentions(tensors, side)]
    biases = [name for name in tensors if name.endswith("/bias")]
    return {
        "norm_placement": "pre" if reading.both_sides("pre_norm", 1) else "post",
        "hidden_act": ACTIVATIONS.get(activation, "relu"),
        "gated_feed_forward": has("layer_0/ffn/linear_0_noact/weight"),
        "norm_type": "layer_norm" if has("layer_0/ffn/layer_norm/beta") else "rms_norm",
        "final_norm": has("layer_norm/gamma"),
        "embedding_norm": has("layernorm_embedding/gamma"),
        "attention_bias": any("attention/" in name for name in biases),
        "feed_forward_bias": any("/ffn/" in name for name in biases),
        "attention_scale": reading.one([f"{scope}/queries_scale" for scope in everywhere], None),
        "logits_bias": "decoder/projection/bias" in tensors,
        "logits_scale": reading.one(["decoder/scale_outputs"], 1.0),
        "scale_embedding": _scales_embeddings(reading, tensors["decoder/embeddings/weight"].shape[1]),
    }


def _scales_embeddings(reading: _Reading, hidden: int) -> bool:
    """A flag, or the factor itself; where a file does not say, the engine takes √C."""
    found = []
    for side, old in (("encoder", "embeddings_0"), ("decoder", "embeddings")):
        older = reading.attributes.pop(f"{side}/{old}/multiply_by_sqrt_depth", 1)
        scale = reading.attributes.pop(f"{side}/scale_embeddings", older)
        if isinstance(scale, float) and scale != 1 and abs(scale - hidden**0.5) > 1e-6 * scale:
            reading.problems.append(f"the {side} multiplies embeddings by {scale}, neither 1 nor √{hidden}")
        found.append(scale != 1 if isinstance(scale, float) else bool(scale))
    return bool(reading.agree("whether embeddings are scaled", found))


def _positions(reading: _Reading, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if any(name.endswith("/rotary_dim") for name in reading.attributes):
        return _rotary(reading, tensors)
    if f"encoder/layer_0/{RELATIVE_BIAS}" in tensors:
        return _relative(reading, tensors)
    tables = [tensors[name] for side in SIDES if (name := f"{side}/{ENCODINGS}") in tensors]
    if not tables:  # computed by the engine
        return {"position_encoding": "sinusoidal", "sinusoidal_endpoint": True, "position_offset": 1}
    if len(tables) == 1:
        reading.problems.append("one side has a table of positions and the other has none")
        return {"position_encoding": "none"}
    size = {"max_position_embeddings": reading.agree("the number of positions", map(len, tables))}
    formula = _formula(tables)
    if formula is None:
        return {"position_encoding": "learned", **size}
    for side in SIDES:
        del tensors[f"{side}/{ENCODINGS}"]
    return formula if formula["position_encoding"] == "none" else {**formula, **size}


def _self_attentions(tensors: dict[str, Tensor]) -> list[str]:
    return [scope for side in SIDES for scope in _attentions(tensors, side) if scope.endswith("/self_attention")]


def _rotary(reading: _Reading, tensors: dict[str, Tensor]) -> dict[str, Any]:
    scopes = _self_attentions(tensors)
    for side, head_dim in zip(SIDES, reading.head_dims, strict=True):
        turned = reading.one([f"{scope}/rotary_dim" for scope in scopes if scope.startswith(side)], None)
        if turned not in (0, head_dim):
            reading.problems.append(f"rotary positions turn {turned} of the {head_dim} channels of a head ({side})")
    if reading.one([f"{scope}/rotary_interleave" for scope in scopes], 1):
        reading.problems.append("rotary positions turn neighbouring channels, not those of the two halves")
    base = reading.one([f"{scope}/rotary_base" for scope in scopes], 10000.0)
    parameters = {"rope_type": "default", "rope_theta": base}
    kind = reading.one([f"{scope}/rotary_scaling_type" for scope in scopes], None)
    if kind is not None:
        factor = reading.one([f"{scope}/rotary_scaling_factor" for scope in scopes], 1.0)
        parameters |= {"rope_type": "linear", "factor": factor}
        if kind != 0:
            reading.problems.append(f"rotary positions are scaled in the way number {kind}; only 0, linear, is known")
    return {"position_encoding": "rotary", "rope_parameters": parameters}


def _relative(reading: _Reading, tensors: dict[str, Tensor]) -> dict[str, Any]:
    scopes = _self_attentions(tensors)
    tables = {
        side: [tensors[f"{side}/layer_{i}/{RELATIVE_BIAS}"] for i in range(_layers(tensors, side))] for side in SIDES
    }
    return {
        "position_encoding": "relative",
        "relative_attention_num_buckets": len(tables["encoder"][0]),
        "relative_attention_max_distance": reading.one([f"{s}/relative_attention_max_distance" for s in scopes], 128),
        "relative_attention_per_layer": not all(torch.equal(own[0], table) for own in tables.values() for table in own),
    }


def _formula(tables: list[Tensor]) -> dict[str, Any] | None:
    """How Dragoman computes both tables to the bit, if it does."""
    first, second = tables
    rows, size = first.shape
    if not torch.equal(first, second):
        return None
    if not first.any():
        return {"position_encoding": "none"}
    for offset in range(3):
        for endpoint in (False, True):
            if size >= 4 and torch.equal(first, sinusoids(rows, size, offset, endpoint)):
                found = {"position_offset": offset, "sinusoidal_endpoint": endpoint}
                return {"position_encoding": "sinusoidal", **found}
    return None


def _vocabularies(engine: EngineModel, order: TokenOrder, tensors: dict[str, Tensor]) -> dict[str, Any]:
    source, target = tensors["encoder/embeddings_0/weight"], tensors["decoder/embeddings/weight"]
    begin, end = order.special["bos_token"], order.special["eos_token"]
    start = engine.settings.get("decoder_start_token") or begin or end  # null: the user has to say
    if start not in order.target:
        raise ValueError(f"The decoder starts with {start!r:.60}, which is not in the target vocabulary.")
    return {
        "vocab_size": len(order.target),
        "source_vocab_size": None if order.source == order.target else len(order.source),
        "share_embeddings": torch.equal(source, target),
        "tie_word_embeddings": torch.equal(target, tensors["decoder/projection/weight"]),
        "pad_token_id": order.id("pad_token"),
        "bos_token_id": order.id("bos_token"),
        "eos_token_id": order.id("eos_token"),
        "decoder_start_token_id": order.target.index(start),
    }
