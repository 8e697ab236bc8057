"""``generate()`` for any encoder-decoder here: transformers' own, with the gaps closed that it leaves for them."""

import copy
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from .encoder_outputs import as_encoder_output
from .padding import mask_of_left_padding, mask_of_padding

TOKENIZERS = ("tokenizer", "assistant_tokenizer")  # arguments of generate() that its loops hand on to the model


def of_what_is_written(tokenizer: Any) -> Any:
    """The tokenizer; of ours a copy that has the target's vocabulary alone.

    transformers learns what text a token makes by decoding it behind "abcdef", which the copy knows as one token: a
    vocabulary of words, of sounds or of other letters has none for it.
    """
    if hasattr(tokenizer, "separate_vocabularies"):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer._switch_to_target_mode()  # a hook of every tokenizer of transformers
        tokenizer._idle_tokenizer = None  # to which every call would switch back
        tokenizer.add_tokens("abcdef")
    return tokenizer


def put_before(columns: Tensor, result: Any) -> Any:
    """The first columns of the prompts, (B, T), before what was written for each, (B · N, T')."""
    if isinstance(result, Tensor):
        return torch.cat([columns.repeat_interleave(len(result) // len(columns), dim=0), result], dim=1)
    result.sequences = put_before(columns, result.sequences)
    return result


def given_columns(sequences: Tensor, prompt: Tensor | None) -> int:
    """How many columns of (B * N, T) were not written: the prompt's (B, P), before which a start token may be put."""
    if prompt is None:
        return 1
    prompt = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
    return prompt.shape[1] + int(not torch.equal(sequences[:, : prompt.shape[1]], prompt))


def pad_after_end(result: Any, prompt: Tensor | None, ends: int | Sequence[int] | None, pad: int | None) -> Any:
    """What beam search fills rows up with: the end token, where padding is token 0; -1 where no token ends them."""
    if isinstance(result, Tensor) and pad is not None:
        written = result[:, given_columns(result, prompt) :]
        ended = torch.isin(written, torch.as_tensor([] if ends is None else ends, device=written.device)).long()
        written.masked_fill_((ended.cumsum(1) > ended) | (written < 0), pad)
    elif not isinstance(result, Tensor):
        pad_after_end(result.sequences, prompt, ends, pad)
    return result


class EncoderDecoderGenerationMixin(GenerationMixin):
    """Five things differ from transformers. ``encoder_outputs`` of the caller are left as they were (beam search would
    enlarge them in place); padding is masked even where no mask was given; behind their end beams are padded as other
    rows are; ``stop_strings`` are looked for in the vocabulary that is written; what transformers cannot do for an
    encoder-decoder raises.
    """

    config: Any
    generation_config: GenerationConfig
    encoder_output_class: type[ModelOutput] = BaseModelOutput

    @torch.no_grad()  # as transformers' own, of which some take what is wrapped
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("cu_seq_lens") is not None or kwargs.get("decoder_cu_seq_lens") is not None:
            raise ValueError(
                "generate() takes a padded batch, not a packed one (cu_seq_lens): collate with "
                "transformers.DataCollatorForSeq2Seq, or tokenizer(..., padding=True)."
            )
        passed = {} if generation_config is None else generation_config.to_dict()
        asked = {**self.generation_config.to_dict(), **{k: v for k, v in passed.items() if v is not None}, **kwargs}
        if asked.get("cache_implementation") == "paged":
            self.init_continuous_batching()
        if asked.get("prefill_chunk_size"):
            raise NotImplementedError(
                "transformers reads prompts in chunks for decoders alone (it would cut the source's mask): leave "
                "prefill_chunk_size out."
            )
        if asked.get("assistant_early_exit") is not None:
            raise NotImplementedError("transformers has no early exit for encoder-decoders: pass an assistant_model.")
        if asked.get("token_healing"):
            raise NotImplementedError(
                "transformers heals the tokens of decoders' prompts alone: leave token_healing out."
            )
        if asked.get("guidance_scale") not in (None, 1):
            raise NotImplementedError(
                f"guidance_scale={asked['guidance_scale']} would have the prompt of a decoder read again without its "
                "beginning, and an encoder-decoder's stands in the source: leave it out."
            )
        if kwargs.get("assistant_tokenizer") is not None:
            raise NotImplementedError(
                "transformers gives an encoder-decoder that assists the source in this model's tokens: take an "
                "assistant_model with the same tokenizer, and leave assistant_tokenizer out."
            )
        neutral = {"encoder_repetition_penalty": (None, 1), "encoder_no_repeat_ngram_size": (None, 0)}
        copies = [name for name, values in neutral.items() if asked.get(name) not in values]
        if copies and getattr(self, "_has_two_vocabularies", False):
            raise ValueError(
                f"{copies[0]} would take source tokens for those of the target's vocabulary: leave it out."
            )
        if (states := kwargs.get("encoder_outputs")) is not None:
            kwargs["encoder_outputs"] = copy.copy(as_encoder_output(self.encoder_output_class, states))
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        if input_ids is not None and input_ids.dim() == 2 and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = mask_of_padding(input_ids, self.config)
        unread = None  # columns that are padding in every row: transformers would put start tokens before them
        if (prefix := kwargs.get("decoder_input_ids")) is not None:
            cache, mask = kwargs.get("past_key_values"), kwargs.get("decoder_attention_mask")
            mask = mask_of_left_padding(prefix, self.config) if mask is None else mask
            read = 0 if cache is None else cache.get_seq_length()
            if read and mask.shape[-1] > read:  # without a mask transformers would have all of it read again
                kwargs["decoder_attention_mask"] = mask
            if mask.shape == prefix.shape and not mask.all():
                begins = self._first_read(prefix, mask, asked)
                if begins and read >= prefix.shape[1] - begins:
                    raise ValueError(
                        f"The cache has {read} tokens, and decoder_input_ids {prefix.shape[1]}, of which {begins} are "
                        "padding in every row: generate() keeps none of these in a cache. Cut them off."
                    )
                unread = prefix[:, :begins]
                kwargs["decoder_input_ids"], kwargs["decoder_attention_mask"] = prefix[:, begins:], mask[:, begins:]
                for whole, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
                    if asked.get(whole) and not asked.get(new):
                        kwargs[whole] = asked[whole] - begins
        if kwargs.get("tokenizer") is not None:
            kwargs["tokenizer"] = of_what_is_written(kwargs["tokenizer"])
        generate: Any = getattr(GenerationMixin.generate, "__wrapped__", GenerationMixin.generate)
        result = generate(self, inputs, generation_config, *args, **kwargs)
        if (asked.get("num_beams") or 1) > 1:
            result = pad_after_end(
                result, kwargs.get("decoder_input_ids"), asked["eos_token_id"], asked["pad_token_id"]
            )
        return result if unread is None else put_before(unread, result)

    @staticmethod
    def _first_read(prefix: Tensor, mask: Tensor, asked: dict[str, Any]) -> int:
        """The first column that a row has a token in; or 0, where transformers will find a start token and add none."""
        start = asked.get("decoder_start_token_id")
        start = asked.get("bos_token_id") if start is None else start
        begun = start is not None and bool(torch.isin(prefix[:, 0], torch.as_tensor(start, device=prefix.device)).any())
        return 0 if begun else int(mask.any(0).long().argmax())

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        for name in TOKENIZERS:
            kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *_: Any, **__: Any) -> NoReturn:
        # generate_batch() comes through here too
        raise NotImplementedError(
            "transformers has no continuous batching (paged cache) for encoder-decoders; it would return the prompt. "
            "Call generate() with a padded batch instead."
        )
