"""``generate()``: transformers' own, with the gaps that it leaves for encoder-decoders closed."""

import copy
from typing import Any, NoReturn

from torch import LongTensor, Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ..configuration.configuration_dragoman import DragomanConfig
from .decoding_loops import DecodingLoops, is_covered
from .padding import mask_of_left_padding, mask_of_padding


class DragomanGenerationMixin(GenerationMixin):
    """Greedy, sampling, beams, static cache, assisted and prompt lookup, as documented by transformers.

    What is computed a token is :class:`DecodingStep`, wherever it covers what was asked for; the result is the same.
    Four things differ. ``encoder_outputs`` of the caller are left as they were (beam search would enlarge them in
    place); padding is masked even where no mask was given; keys and values of the source are not moved from beam to
    beam; what transformers cannot do for an encoder-decoder raises.
    """

    config: DragomanConfig
    generation_config: GenerationConfig

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        asked = {**(generation_config or self.generation_config).to_dict(), **kwargs}
        if asked.get("cache_implementation") == "paged":
            self.init_continuous_batching()
        if asked.get("assistant_early_exit") is not None:
            raise NotImplementedError("transformers has no early exit for encoder-decoders: pass an assistant_model.")
        if (states := kwargs.get("encoder_outputs")) is not None:
            kwargs["encoder_outputs"] = copy.copy(states) if isinstance(states, dict) else BaseModelOutput(*states)
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        if input_ids is not None and input_ids.dim() == 2 and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = mask_of_padding(input_ids, self.config)
        if (prefix := kwargs.get("decoder_input_ids")) is not None and kwargs.get("decoder_attention_mask") is None:
            mask = mask_of_left_padding(prefix, self.config)
            if not mask.all():
                begins = int(mask.any(0).long().argmax())  # columns that are padding in every row say nothing
                kwargs["decoder_input_ids"] = prefix[:, begins:]
                kwargs["decoder_attention_mask"] = mask[:, begins:]
        return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]

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

    def init_continuous_batching(self, *_: Any, **__: Any) -> NoReturn:
        # generate_batch() comes through here too
        raise NotImplementedError(
            "transformers has no continuous batching (paged cache) for encoder-decoders; it would return the prompt. "
            "Call generate() with a padded batch instead."
        )
