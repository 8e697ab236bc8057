"""``generate()`` of the Transformer."""

from typing import Any

from torch import LongTensor
from transformers.cache_utils import EncoderDecoderCache

from ..configuration.configuration_dragoman import DragomanConfig
from .decoding_loops import DecodingLoops, is_covered
from .encoder_decoder_generation import EncoderDecoderGenerationMixin


class DragomanGenerationMixin(EncoderDecoderGenerationMixin):
    """Greedy, sampling, beams, static cache, assisted and prompt lookup, as documented by transformers.

    What is computed a token is :class:`DecodingStep`, wherever it covers what was asked for; the result is the same.
    Otherwise keys and values of the source are not moved from beam to beam.
    """

    config: DragomanConfig

    # transformers' private seams: generate(), all prepared, calls one of these two, by keyword.

    def _sample(self, input_ids: Any, **arguments: Any) -> Any:  # type: ignore[override]
        if not is_covered(self, arguments):
            return super()._sample(input_ids, **arguments)  # type: ignore[misc]
        return DecodingLoops(self, arguments).sample(input_ids, **arguments)

    def _beam_search(self, input_ids: Any, **arguments: Any) -> Any:  # type: ignore[override]
        if not is_covered(self, arguments):
            return super()._beam_search(input_ids, **arguments)  # type: ignore[misc]
        return DecodingLoops(self, arguments).beam_search(input_ids, **arguments)

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: LongTensor) -> EncoderDecoderCache:
        # transformers' hook, private in name only: beam search calls it where a model has it. The beams of a source see
        # the same source, so only what they wrote differs; without the hook both halves would be copied every step.
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values
