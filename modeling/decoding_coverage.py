"""What :class:`DecodingStep` computes as the model would; the rest is left to transformers' loops around the model."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import Attention
from .decoder import Decoder, DecoderLayer
from .dropout import Dropout
from .encoder_decoder_generation import TOKENIZERS
from .feed_forward import FeedForward
from .linear import PLAIN
from .position_biases import AlibiBias, RelativeBias
from .position_encodings import RotaryEmbedding
from .residual import Residual

# What the loops are given for themselves, and what for the model's forward that the step has no need of or reads.
ARGUMENTS = frozenset(
    "attention_mask decoder_attention_mask encoder_outputs generation_config inputs_embeds labels logits_processor "
    "logits_to_keep past_key_values position_ids stopping_criteria streamer synced_gpus use_cache".split()
).union(TOKENIZERS)
REARRANGED = (
    Decoder,
    DecoderLayer,
    Attention,
    Dropout,
    FeedForward,
    Residual,
    AlibiBias,
    RelativeBias,
    RotaryEmbedding,
)  # what the step does in its own way
FORWARDS = {part: part.forward for part in (*REARRANGED, *PLAIN)}  # when this was loaded: a class can be patched
# What the step knows, by name: the code that a checkpoint brought is the same. A subclass or peft may have its own.
KNOWN = {
    "forward": "DragomanForConditionalGeneration.forward",
    "apply_head": "LanguageModelingHead.apply_head",
    "prepare_inputs_for_generation": "EncoderDecoderGenerationMixin.prepare_inputs_for_generation",
    "_update_model_kwargs_for_generation": "GenerationMixin._update_model_kwargs_for_generation",
}


def is_covered(model: Any, arguments: dict[str, Any], rows: int) -> bool:
    """Whether the step computes what the model would with these arguments. What it does not, the stock loop does."""
    config, states = arguments["generation_config"], arguments["encoder_outputs"].last_hidden_state
    mask, prefix_mask = arguments.get("attention_mask"), arguments.get("decoder_attention_mask")
    asks_for_more = config.output_attentions or config.output_hidden_states or torch.is_grad_enabled()
    in_other_ways = arguments.get("synced_gpus") or config.is_assistant
    return (
        states.device.type == "cpu"  # elsewhere looking whether rows are finished would make every step wait
        and (len(states), states.dtype, states.device) == (rows, model.dtype, model.device)
        and not torch.is_autocast_enabled("cpu")
        and all(arguments[name] is None for name in arguments.keys() - ARGUMENTS)
        and (mask is None or mask.dim() == 2)
        and (prefix_mask is None or bool(prefix_mask.all()))
        and not asks_for_more
        and not in_other_ways
        and config.use_cache
        and is_new_and_dynamic(arguments.get("past_key_values"))
        and is_untouched(model)
    )


def is_new_and_dynamic(cache: Any) -> bool:
    if not isinstance(cache, EncoderDecoderCache):
        return False
    halves = (cache.self_attention_cache, cache.cross_attention_cache)
    return all(type(half) is DynamicCache and not half.offloading and half.get_seq_length() == 0 for half in halves)


def is_untouched(model: Any) -> bool:
    """Whether all is ours down to the parts that the step calls, nothing drops out, and nobody listens in between."""
    base, head = model.base_model, model.get_output_embeddings()
    called = [(model, name, ours) for name, ours in KNOWN.items()] + [(base, "forward", "DragomanModel.forward")]
    known = type(base.decoder) is Decoder and all(
        is_original(getattr(owner, name), ours) for owner, name, ours in called
    )
    if not known or model.training or model.config._attn_implementation != "sdpa":
        return False
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:  # registered anew
        return False
    parts = [base.decoder, base.decoder.position_bias, base.decoder.rotary, *base.decoder.layers]
    parts += [part for layer in base.decoder.layers for part in layer.children()]
    parts += [part for name, part in base.decoder.named_modules() if name.endswith(".dropout")]
    if not all(part is None or type(part) in REARRANGED for part in parts):
        return False
    if any(part.forward is not forward for part, forward in FORWARDS.items()):
        return False
    everything = [model, base, head, *base.decoder.modules()]
    listened = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return not (listened or any(map(is_intercepted, everything)))


def is_original(method: Any, name: str) -> bool:
    """Whether it has that name, and is not somebody else's that only took it (as ``functools.wraps`` does)."""
    ours = {__name__.partition(".")[0], "transformers", "torch"}
    function = getattr(method, "__func__", method)
    if getattr(function, "__qualname__", None) != name:
        return False
    while function is not None:
        if getattr(function, "__globals__", {}).get("__name__", "").partition(".")[0] not in ours:
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def is_intercepted(module: nn.Module) -> bool:
    """Hooks, a forward of its own (as offloading gives it), or a compiled one; or dropout that the step leaves out."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    own = "forward" in module.__dict__ or module._compiled_call_impl is not None
    drops = module.training and isinstance(module, REARRANGED)
    return bool(hooks or own or drops)
