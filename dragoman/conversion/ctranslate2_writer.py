"""A Dragoman folder into a CTranslate2 one: ``write_ctranslate2``, and the loader for the engine's own converter.

Importing this module, which ``import dragoman`` does where the engine is installed, registers the loader: then
``ctranslate2.converters.TransformersConverter(folder).convert(to)`` takes a Dragoman folder. What the engine cannot
express is refused, all reasons together.
"""

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2 import __version__ as engine_version
from ctranslate2.converters import TransformersConverter, utils
from ctranslate2.converters.transformers import ModelLoader, register_loader
from ctranslate2.specs.attention_spec import RotaryScalingType
from ctranslate2.specs.model_spec import index_spec
from ctranslate2.specs.transformer_spec import TransformerDecoderSpec, TransformerEncoderSpec, TransformerSpec
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from ..configuration.configuration_dragoman import DragomanConfig
from .ctranslate2_fields import ACTIVATIONS, SIDES
from .ctranslate2_layout import ENCODINGS, parameter_map
from .ctranslate2_tokens import tokens_of
from .registry import refuse_other_heads

logger = logging.getLogger(__name__)

_SPECS = {"encoder": TransformerEncoderSpec, "decoder": TransformerDecoderSpec}
_ACTIVATIONS = {name: number for number, name in ACTIVATIONS.items()} | {"gelu_new": 1, "swish": 2}


def write_ctranslate2(
    folder: str | os.PathLike[str], to: str | os.PathLike[str], quantization: str | None = None
) -> None:
    """Write the model in ``folder`` as the engine reads it into ``to``, with the files of the tokenizer.

    ``quantization``: ``int8``, ``int8_float32``, ``int8_float16``, ``int8_bfloat16``, ``int16``, ``float16``,
    ``bfloat16`` or ``float32``; None keeps the type of the weights.

    Raises:
        FileExistsError: for ``to`` that exists.
        ValueError: for options that the engine does not have, all of them together; for a model that writes no text.
    """
    if Path(to).exists():
        raise FileExistsError(f"{to} exists: name a folder that does not.")
    refuse_other_heads(AutoConfig.from_pretrained(str(folder)).architectures or [])
    if not any((Path(folder) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        raise ValueError(f"{folder} has no tokenizer, and the engine's folders name every token: save one there first")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    names = [*tokenizer.vocab_files_names.values(), "tokenizer_config.json", "special_tokens_map.json"]
    files = [name for name in dict.fromkeys(names) if (Path(folder) / name).is_file()]
    TransformersConverter(str(folder), copy_files=files).convert(str(to), quantization=quantization)


def find_unsupported(config: DragomanConfig) -> list[str]:
    """Which options the installed engine cannot express, and why."""
    reasons = []
    if config.position_encoding == "alibi":
        reasons.append("position_encoding='alibi': the engine has ALiBi in decoders only")
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in ("default", "linear"):
        reasons.append(f"rope_parameters: rope_type={kind!r}: the engine's encoder has 'default' and 'linear' only")
    if config.norm_before_positions:
        reasons.append("norm_before_positions=True: the engine adds positions before the norm")
    for side, spec in _SPECS.items():
        missing = set(_options(config, side)) - set(inspect.signature(spec.__init__).parameters)
        if missing:
            names = ", ".join(sorted(missing))
            reasons.append(f"the {side} of the installed ctranslate2 {engine_version} has no {names}: a newer one may")
    return reasons


def _options(config: DragomanConfig, side: str) -> dict[str, Any]:
    """Keywords of the engine's specification of a side; only those that differ from what older engines do anyway."""
    heads = getattr(config, f"{side}_num_attention_heads")
    groups = getattr(config, f"{side}_num_key_value_heads")
    options: dict[str, Any] = {
        "num_layers": getattr(config, f"{side}_num_hidden_layers"),
        "num_heads": heads,
        "pre_norm": True,  # so that there is a place for a final norm; the flag itself is set afterwards
        "no_final_norm": not config.final_norm,
        "activation": _ACTIVATIONS[config.hidden_act],
        "layernorm_embedding": config.embedding_norm,
        "relative_attention_bias": config.position_encoding == "relative",
        "ffn_glu": config.gated_feed_forward,
        "rms_norm": config.norm_type == "rms_norm",
    }
    if groups != heads:
        options["num_heads_kv"] = groups
    head_dim = config.head_dim_of(heads)
    if head_dim * heads != config.hidden_size:
        options["head_dim"] = head_dim
    if config.position_encoding == "rotary":
        rope = config.rope_parameters or {}
        options |= {"rotary_dim": head_dim, "rotary_interleave": False, "rotary_base": rope.get("rope_theta", 10000.0)}
        if rope.get("rope_type") == "linear":
            options |= {"rotary_scaling_type": RotaryScalingType.Linear, "rotary_scaling_factor": rope["factor"]}
    return options


@register_loader("DragomanConfig")
class DragomanLoader(ModelLoader):
    """What the engine's converter asks for, in the order in which it asks."""

    architecture_name = "AutoModelForSeq2SeqLM"

    def get_model_spec(self, model: Any) -> TransformerSpec:
        config: DragomanConfig = model.config
        if reasons := find_unsupported(config):
            utils.raise_unsupported(reasons)
        spec = TransformerSpec(*(_SPECS[side](**_options(config, side)) for side in SIDES))
        if model.is_int8:  # the engine has a format of its own: --quantization int8
            model = model.dequantize()
        state = {name: value.detach() for name, value in model.state_dict().items()}
        for variable, names in parameter_map(config).items():
            scope, leaf = variable.rsplit("/", 1)
            if leaf == "beta" and names[0] not in state:  # without one the engine takes it for RMSNorm
                value = torch.zeros_like(state[names[0].replace(".bias", ".weight")])
            else:
                value = torch.cat([state[name] for name in names])
            setattr(index_spec(spec, scope), leaf, _scaled(variable, value, config))
        for side, stack in zip(SIDES, (spec.encoder, spec.decoder), strict=True):
            stack.pre_norm = config.norm_placement == "pre"
            stack.scale_embeddings = config.scale_embedding
            self._set_positions(stack, side, model)
            for layer in stack.layer:
                self._set_attention(layer, config)
        if config.logits_scale != 1:
            spec.decoder.scale_outputs = float(config.logits_scale)
        return spec

    def _set_attention(self, layer: Any, config: DragomanConfig) -> None:
        for attention in (layer.self_attention, getattr(layer, "attention", None)):
            if attention is not None and config.attention_scale is not None:
                attention.queries_scale = float(config.attention_scale)
        if config.position_encoding == "relative":
            distance = np.int32(config.relative_attention_max_distance)
            layer.self_attention.relative_attention_max_distance = distance

    def _set_positions(self, stack: Any, side: str, model: Any) -> None:
        """A table, but for those that the engine computes itself: without one it would compute them in any case."""
        config: DragomanConfig = model.config
        if config.position_encoding == "sinusoidal":
            if (config.position_offset, config.sinusoidal_endpoint) != (1, True):
                positions = getattr(model.model, side).embedding.positions
                stack.position_encodings.encodings = positions.table.to(model.dtype)
        elif config.position_encoding == "none":
            shape = (config.max_position_embeddings, config.hidden_size)
            stack.position_encodings.encodings = torch.zeros(shape, dtype=model.dtype)

    def get_vocabulary(self, model: Any, tokenizer: Any) -> list[list[str]]:
        config: DragomanConfig = model.config
        sizes = (config.source_vocab_size or config.vocab_size, config.vocab_size)
        return [_fit(side, size) for side, size in zip(tokens_of(tokenizer), sizes, strict=True)]

    def set_vocabulary(self, spec: Any, tokens: list[list[str]]) -> None:
        spec.register_source_vocabulary(tokens[0])
        spec.register_target_vocabulary(tokens[1])

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        """The source ends as the tokenizer ends it, so the engine adds nothing."""
        written, ids = self.get_vocabulary(model, tokenizer)[1], model.config
        config.eos_token = written[ids.eos_token_id]  # a tokenizer may have no name for its end, as those of BERT
        config.bos_token = tokenizer.pad_token if ids.bos_token_id is None else written[ids.bos_token_id]
        config.unk_token = tokenizer.unk_token or tokenizer.pad_token  # the engine would add one, and has no row for it
        config.decoder_start_token = written[ids.decoder_start_token_id]
        config.layer_norm_epsilon = float(model.config.norm_eps)
        settings = model.generation_config
        forbidden = [*(settings.bad_words_ids or ()), *([token] for token in settings.suppress_tokens or ())]
        if forbidden:
            names = [[written[token] for token in tokens] for tokens in forbidden]
            logger.warning(
                "A folder of the engine has no place for what the generation config forbids: pass "
                f"suppress_sequences={names} to translate_batch."
            )


def _scaled(variable: str, value: Tensor, config: DragomanConfig) -> Tensor:
    """The engine scales what goes into the head, Dragoman what comes out, bias and all; offset rows are cut off."""
    if variable == "decoder/projection/bias" and config.logits_scale != 1:
        return value * config.logits_scale
    if variable.endswith(ENCODINGS):
        return value[config.position_offset :]
    return value


def _fit(tokens: list[str], size: int) -> list[str]:
    """Names for rows that no token has; the engine must not meet a name twice."""
    if len(tokens) > size:
        raise ValueError(f"The tokenizer has {len(tokens)} tokens, and the model has {size} rows: they do not match.")
    return [*tokens, *(f"<unused{i}>" for i in range(len(tokens), size))]
