"""Where the rows that generate() wrote end, and how likely they are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StopStringCriteria

from .modeling.encoder_decoder_generation import of_what_is_written

MOST_TOKENS = 256  # to write, where neither the caller nor the model's generation config says how many


def most_tokens(model: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS + 1
    return min(MOST_TOKENS, positions - 1)


def generation_options(model: Any, tokenizer: Any) -> dict[str, Any]:
    """For generate(), so that it returns one text a row, as the model's generation config says, as a tensor.

    Where that has no limit, transformers alone would stop at 20 tokens.
    """
    config = model.generation_config
    options: dict[str, Any] = {"num_return_sequences": 1, "return_dict_in_generate": False}
    if config.max_length is None is config.max_new_tokens:
        options["max_new_tokens"] = most_tokens(model)
    if config.stop_strings:
        options["tokenizer"] = tokenizer
    return options


def written_lengths(
    sequences: Tensor,
    begins: int,
    end_tokens: int | Sequence[int] | None,
    strings: str | list[str] | None,
    tokenizer: Any,
    pad: int | None,
) -> Tensor:
    """How many tokens (B * N,) each row has from column ``begins`` to its first end.

    An end is an end token, the last token of a ``stop_strings``, or, for rows that a criterion may have stopped, what
    only ``pad`` follows.
    """
    written = sequences[:, begins:]
    ended = torch.isin(written, torch.as_tensor([] if end_tokens is None else end_tokens, device=sequences.device))
    if strings and written.shape[1]:
        has_string: Any = StopStringCriteria(of_what_is_written(tokenizer), strings)  # as generate() asks every token
        columns = range(begins + 1, sequences.shape[1] + 1)
        ended = ended | torch.stack([has_string(sequences[:, :n], None) for n in columns], dim=1)
    up_to_end = ended.cumsum(1) - ended.long() == 0
    before_padding = (written != pad).flip(1).cumsum(1).flip(1) > 0 if pad is not None else up_to_end
    return (up_to_end & (ended | before_padding)).sum(1)


def sequence_scores(model: Any, output: Any, lengths: Tensor, length_penalty: float) -> Tensor:
    """``Σ log p(token) / length^length_penalty`` of each sequence (B * N,), as beam search has it."""
    if getattr(output, "sequences_scores", None) is not None:
        return output.sequences_scores
    logs = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)  # (B * N, T)
    after_end = torch.arange(logs.shape[1], device=logs.device) >= lengths[:, None]
    return logs.masked_fill(after_end, 0.0).sum(1) / lengths**length_penalty
