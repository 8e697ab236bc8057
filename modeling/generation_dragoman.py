"""``generate()`` of the Transformer: transformers' decoding loops, as they are, around :class:`DecodingStep`."""

from contextlib import nullcontext
from typing import Any

from torch import LongTensor, Tensor
from transformers import GenerationMixin, StoppingCriteriaList
from transformers.cache_utils import EncoderDecoderCache

from ..configuration.configuration_dragoman import DragomanConfig
from .decoding_coverage import is_covered
from .decoding_step import DecodingStep
from .encoder_decoder_generation import EncoderDecoderGenerationMixin

FEWEST_FINISHED = 0.25  # of the sources: so many are worth moving the others together


class DragomanGenerationMixin(EncoderDecoderGenerationMixin):
    """Greedy, sampling, beams, static cache, assisted and prompt lookup, as documented by transformers.

    What is computed a token is :class:`DecodingStep`, wherever it covers what was asked for; the result is the same.
    Otherwise keys and values of the source are not moved from beam to beam.
    """

    config: DragomanConfig

    # transformers' private seams: generate(), all prepared, calls one of these two; loops of others may, too.

    def _sample(self, *given: Any, **arguments: Any) -> Any:
        input_ids, arguments = by_name(given, arguments)
        if not is_covered(self, arguments, len(input_ids)):
            return super()._sample(input_ids, **arguments)  # type: ignore[misc]
        return DecodingLoops(self, arguments).sample(input_ids, **arguments)

    def _beam_search(self, *given: Any, **arguments: Any) -> Any:
        input_ids, arguments = by_name(given, arguments)
        if not is_covered(self, arguments, len(input_ids)):
            return super()._beam_search(input_ids, **arguments)  # type: ignore[misc]
        return DecodingLoops(self, arguments).beam_search(input_ids, **arguments)

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: LongTensor) -> EncoderDecoderCache:
        # transformers' hook, private in name only: beam search calls it where a model has it. The beams of a source see
        # the same source, so only what they wrote differs; without the hook both halves would be copied every step.
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values


def by_name(given: tuple[Any, ...], arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The ids, and the other arguments of a loop, of which the first are often given by place."""
    places = ("input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer")
    arguments = {**dict(zip(places, given, strict=False)), **arguments}
    return arguments.pop("input_ids"), arguments


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
        mask = arguments.get("attention_mask")
        self.step = DecodingStep(model, states, mask, self.copies, config.num_beams, config.max_length - 1)
        self.cache = arguments["past_key_values"]
        self.sources: Tensor | None = None  # those not finished yet; None: all
        self.criteria = Watched(StoppingCriteriaList())
        # transformers' private mark of a cache that the caller holds, and will find filled
        self.returns_all = config.return_dict_in_generate or getattr(self.cache, "_is_user_defined", False)
        self.drops = self.total > 1 and not self.returns_all  # where nobody asks for the scores of what is finished

    def sample(self, input_ids: LongTensor, stopping_criteria: StoppingCriteriaList, **kwargs: Any) -> Any:
        pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)  # as the loop asks
        if self.drops and pads:  # else a row that is finished goes on as long as the others
            stopping_criteria = self.criteria = Watched(stopping_criteria)
        loop: Any = GenerationMixin._sample
        return self._returned(loop(self, input_ids, stopping_criteria=stopping_criteria, **kwargs))

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
        """Leave out the sources that are finished (B,), where they are many."""
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
        if self.drops:
            finished = ~is_early_stop_heuristic_unsatisfied[:, 0]
            self._drop(finished | is_sent_finished.all(dim=1) if early_stopping is True else finished)
        return GenerationMixin._beam_search_has_unfinished_sequences(
            is_early_stop_heuristic_unsatisfied, is_sent_finished, hits, early_stopping
        )
