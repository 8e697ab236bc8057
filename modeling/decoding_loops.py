"""transformers' decoding loops, as they are, with :class:`DecodingStep` in the place of the model."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import GenerationMixin, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from .attention import Attention
from .decoder import Decoder, DecoderLayer
from .decoding_step import DecodingStep
from .feed_forward import FeedForward
from .residual import Residual

# What the loops are given for themselves, and what for the model's forward that the step has no need of or reads.
ARGUMENTS = frozenset(
    "attention_mask decoder_attention_mask encoder_outputs generation_config inputs_embeds logits_processor "
    "logits_to_keep past_key_values position_ids stopping_criteria streamer synced_gpus use_cache".split()
)
REARRANGED = (Decoder, DecoderLayer, Attention, FeedForward, Residual)  # what the step does in its own way
FORWARDS = ("DragomanForConditionalGeneration.forward", "DragomanModel.forward")  # that the step knows
FEWEST_FINISHED = 0.25  # of the sources: so many are worth moving the others together


def is_covered(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether the step computes what the model would with these arguments. What it does not, the stock loop does."""
    config, states = arguments["generation_config"], arguments["encoder_outputs"].last_hidden_state
    mask, prefix_mask = arguments.get("attention_mask"), arguments.get("decoder_attention_mask")
    asks_for_more = config.output_attentions or config.output_hidden_states or torch.is_grad_enabled()
    in_other_ways = arguments.get("synced_gpus") or config.is_assistant or config.prefill_chunk_size
    return (
        states.device.type == "cpu"  # elsewhere looking whether rows are finished would make every step wait
        and (states.dtype, states.device) == (model.dtype, model.device)
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

    def __init__(self, model: Any, arguments: dict[str, Any]) -> None:
        self.config: Any = model.config
        config, states = arguments["generation_config"], arguments["encoder_outputs"].last_hidden_state
        self.copies = max(config.num_beams, config.num_return_sequences)
        self.total = len(states) // self.copies  # sources
        self.step = DecodingStep(model, states, arguments.get("attention_mask"), self.copies, config.num_beams)
        self.cache = arguments["past_key_values"]
        self.sources: Tensor | None = None  # those not finished yet; None: all
        self.criteria = Watched(StoppingCriteriaList())
        self.returns_all = config.return_dict_in_generate

    def sample(self, input_ids: LongTensor, stopping_criteria: StoppingCriteriaList, **kwargs: Any) -> Any:
        self.criteria = Watched(stopping_criteria)
        loop: Any = GenerationMixin._sample
        return self._returned(loop(self, input_ids, stopping_criteria=self.criteria, **kwargs))

    def beam_search(self, input_ids: LongTensor, **kwargs: Any) -> Any:
        loop: Any = GenerationMixin._beam_search
        return self._returned(loop(self, input_ids, **kwargs))

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
        going_on = ~finished if self.sources is None else ~finished[self.sources]
        kept = going_on.nonzero()[:, 0]
        if 0 < len(kept) <= len(going_on) * (1 - FEWEST_FINISHED):
            self.step.keep(kept)
            self.sources = kept if self.sources is None else self.sources[kept]

    # What the loops call, by the names it has there.

    def _prefill(self, input_ids: Tensor, *_: Any, **__: Any) -> Outputs:
        return self(input_ids)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"ids": input_ids[:, -1:]}

    def _update_model_kwargs_for_generation(  # type: ignore[override]
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

    def _beam_search_has_unfinished_sequences(  # type: ignore[override]
        self, is_early_stop_heuristic_unsatisfied: Tensor, is_sent_finished: Tensor, hits: Tensor, early_stopping: Any
    ) -> Tensor:
        finished = ~is_early_stop_heuristic_unsatisfied[:, 0]
        if early_stopping is True:
            finished = finished | is_sent_finished.all(dim=1)
        self._drop(finished)
        return GenerationMixin._beam_search_has_unfinished_sequences(
            is_early_stop_heuristic_unsatisfied, is_sent_finished, hits, early_stopping
        )
