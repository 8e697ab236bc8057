"""transformers' decoding loops, as they are, with :class:`DecodingStep` in the place of the model."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from .attention import Attention
from .decoder import Decoder, DecoderLayer
from .decoding_step import DecodingStep
from .feed_forward import FeedForward
from .residual import Residual

# What the model's forward may be given besides, and what of it the step does without.
ARGUMENTS = frozenset(
    "attention_mask decoder_attention_mask encoder_outputs inputs_embeds logits_to_keep past_key_values position_ids "
    "use_cache".split()
)
REARRANGED = (Decoder, DecoderLayer, Attention, FeedForward, Residual)  # what the step does in its own way
FORWARDS = ("DragomanForConditionalGeneration.forward", "DragomanModel.forward")  # that the step knows
FEWEST_FINISHED = 0.25  # of the sources: so many are worth moving the others together


def is_covered(model: Any, config: GenerationConfig, synced_gpus: bool, inputs: dict[str, Any]) -> bool:
    """Whether the step computes what the model would with these inputs. What it does not, the stock loop does."""
    cache = inputs.get("past_key_values")
    states = inputs["encoder_outputs"].last_hidden_state
    mask, prefix_mask = inputs.get("attention_mask"), inputs.get("decoder_attention_mask")
    nothing_else = all(inputs[name] is None for name in inputs.keys() - ARGUMENTS)
    asks_for_states = config.output_attentions or config.output_hidden_states
    plain_cache = (
        config.use_cache
        and isinstance(cache, EncoderDecoderCache)
        and all(
            type(half) is DynamicCache and not half.offloading and half.get_seq_length() == 0
            for half in (cache.self_attention_cache, cache.cross_attention_cache)
        )
    )
    plain_masks = (mask is None or mask.dim() == 2) and (prefix_mask is None or bool(prefix_mask.all()))
    plain_run = not (synced_gpus or config.is_assistant or config.prefill_chunk_size or torch.is_grad_enabled())
    one_kind = states.dtype == model.dtype and states.device == model.device and not torch.is_autocast_enabled("cpu")
    return bool(
        states.device.type == "cpu"  # elsewhere looking whether rows are finished would make every step wait
        and nothing_else
        and not asks_for_states
        and plain_cache
        and plain_masks
        and plain_run
        and one_kind
        and is_untouched(model)
    )


def is_untouched(model: Any) -> bool:
    """Whether forward is ours all the way down to the parts that the step calls, and nobody listens in between."""
    base, head = model.base_model, model.get_output_embeddings()
    known = all(type(m).forward.__qualname__ == name for m, name in zip((model, base), FORWARDS, strict=True))
    if not known or model.training or model.config._attn_implementation != "sdpa":
        return False
    parts = [base.decoder, *base.decoder.layers]
    parts += [part for layer in base.decoder.layers for part in layer.children() if part is not layer.position_bias]
    if not all(type(part) in REARRANGED for part in parts):
        return False
    everything = [model, base, head, *base.decoder.modules()]
    listened = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return not (listened or any(map(is_intercepted, everything)))


def is_intercepted(module: nn.Module) -> bool:
    """Hooks, a forward of its own (as offloading gives it), or a compiled one."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or "forward" in module.__dict__ or module._compiled_call_impl is not None)


class Watched(StoppingCriteriaList):
    """The caller's criteria, and which rows they have stopped."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        super().__init__(criteria)
        self.stopped: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        now = super().__call__(input_ids, scores, **kwargs)
        self.stopped = now if self.stopped is None else self.stopped | now
        return now


class Outputs(dict[str, Any]):
    """Logits (R, 1, V), and nothing by name."""

    logits: Tensor


class DecodingLoops(GenerationMixin):
    """Greedy search, sampling and beam search: the loops call this as they would call the model.

    They are transformers' own, with its processors, criteria and scores. All that is private in it and overridden here
    stands in this class: how a loop calls a model, how it moves the cache, and where it looks whether all is done.
    """

    def __init__(self, model: Any, config: GenerationConfig, inputs: dict[str, Any]) -> None:
        self.config, self.generation_config = model.config, model.generation_config
        self.cache = inputs["past_key_values"]
        copies, beams = max(config.num_beams, config.num_return_sequences), config.num_beams
        states = inputs["encoder_outputs"].last_hidden_state
        self.step = DecodingStep(model, states, inputs.get("attention_mask"), copies, beams)
        self.copies = copies
        self.total = len(states) // copies
        self.sources: Tensor | None = None  # those not finished yet; None: all
        self.criteria = Watched(StoppingCriteriaList())
        self.returns_all = config.return_dict_in_generate

    def sample(self, input_ids: Tensor, stopping_criteria: StoppingCriteriaList, **kwargs: Any) -> Any:
        self.criteria = Watched(stopping_criteria)
        return self._returned(GenerationMixin._sample(self, input_ids, stopping_criteria=self.criteria, **kwargs))

    def beam_search(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return self._returned(GenerationMixin._beam_search(self, input_ids, **kwargs))

    def _returned(self, result: Any) -> Any:
        if self.returns_all:
            self.step.fill(self.cache)
        return result

    def __call__(self, ids: Tensor, return_dict: bool = True) -> Outputs:
        if self.criteria.stopped is not None:
            self._drop(self.criteria.stopped.view(-1, self.copies).all(dim=1))
        outputs = Outputs()
        if self.sources is None:
            outputs.logits = self.step(ids)[:, None]
        else:
            kept = self.step(ids.unflatten(0, (-1, self.copies))[self.sources].flatten(0, 1))
            # nobody looks at the scores of a finished source
            logits = kept.new_zeros(self.total, self.copies, kept.shape[-1])
            logits[self.sources] = kept.unflatten(0, (-1, self.copies))
            outputs.logits = logits.flatten(0, 1)[:, None]
        return outputs

    def _drop(self, finished: Tensor) -> None:
        """Leave out the sources that are finished (B,), where they are many and nobody asks for their scores."""
        if self.returns_all or self.total == 1:
            return
        kept = (~finished).nonzero()[:, 0]
        before = self.total if self.sources is None else len(self.sources)
        if 0 < len(kept) <= before * (1 - FEWEST_FINISHED):
            now = kept if self.sources is None else torch.isin(self.sources, kept).nonzero()[:, 0]
            self.step.keep(now)
            self.sources = kept

    # What the loops call, by the names it has there.

    def _prefill(self, input_ids: Tensor, *_: Any, **__: Any) -> Outputs:
        return self(input_ids)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **_: Any) -> dict[str, Any]:
        return {"ids": input_ids[:, -1:]}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        return model_kwargs

    def _valid_auto_compile_criteria(self, *_: Any) -> bool:
        return False

    def _optimize_model_for_decode(self) -> Any:
        return nullcontext()

    def _reorder_cache(self, cache: Any, beam_idx: Tensor) -> Any:
        parents = beam_idx.long().view(-1, self.copies) % self.copies
        self.step.reorder(parents if self.sources is None else parents[self.sources])
        return cache

    def _beam_search_has_unfinished_sequences(
        self, is_early_stop_heuristic_unsatisfied: Tensor, is_sent_finished: Tensor, hits: Tensor, early_stopping: Any
    ) -> Tensor:
        finished = ~is_early_stop_heuristic_unsatisfied[:, 0]
        if early_stopping is True:
            finished = finished | is_sent_finished.all(dim=1)
        self._drop(finished)
        return GenerationMixin._beam_search_has_unfinished_sequences(
            is_early_stop_heuristic_unsatisfied, is_sent_finished, hits, early_stopping
        )
