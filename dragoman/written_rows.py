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


def length_limit(model: Any) -> dict[str, int]:
    """For generate(), where the model's generation config has none; transformers alone would stop at 20 tokens."""
    config = model.generation_config
    return {"max_new_tokens": most_tokens(model)} if config.max_length is None is config.max_new_tokens else {}


def written_ends(
    sequences: Tensor, end_tokens: int | Sequence[int], strings: str | list[str] | None, tokenizer: Any
) -> Tensor:
    """Whether each token (B * N, T) after the start is an end token, or the last of a ``stop_strings``."""
    ended = torch.isin(sequences[:, 1:], torch.as_tensor(end_tokens, device=sequences.device))
    if not strings:
        return ended
    has_string: Any = StopStringCriteria(of_what_is_written(tokenizer), strings)  # as generate() asks after every token
    return ended | torch.stack([has_string(sequences[:, :n], None) for n in range(2, sequences.shape[1] + 1)], dim=1)


def sequence_scores(model: Any, output: Any, lengths: Tensor, length_penalty: float) -> Tensor:
    """``Σ log p(token) / length^length_penalty`` of each sequence (B * N,), as beam search has it."""
    if getattr(output, "sequences_scores", None) is not None:
        return output.sequences_scores
    logs = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)  # (B * N, T)
    after_end = torch.arange(logs.shape[1], device=logs.device) >= lengths[:, None]
    return logs.masked_fill(after_end, 0.0).sum(1) / lengths**length_penalty
