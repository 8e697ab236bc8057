"""``generate()`` of the Transformer."""

from torch import LongTensor
from transformers.cache_utils import EncoderDecoderCache

from ..configuration.configuration_dragoman import DragomanConfig
from .encoder_decoder_generation import EncoderDecoderGenerationMixin


class DragomanGenerationMixin(EncoderDecoderGenerationMixin):
    """Greedy, sampling, beams, static cache, assisted and prompt lookup, as documented by transformers.

    Keys and values of the source are not moved from beam to beam.
    """

    config: DragomanConfig

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: LongTensor) -> EncoderDecoderCache:
        # transformers' hook, private in name only: beam search calls it where a model has it. The beams of a source see
        # the same source, so only what they wrote differs; without the hook both halves would be copied every step.
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values
