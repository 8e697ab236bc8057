"""What two models that should be the same are asked: logits of ragged rows, and 64 tokens written for each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

TOKENS = 64
LENGTHS = ((12, 9), (7, 16), (1, 3))  # of sources and targets
SPECIAL = ("pad_token_id", "decoder_start_token_id", "eos_token_id", "bos_token_id")
TOLERANCE = 1e-5  # of the logits in float32, relative to their largest


@dataclass(frozen=True)
class Answers:
    logits: Tensor  # (N, V), of the positions that are no padding
    tokens: Tensor  # (B, T), at most TOKENS


@dataclass(frozen=True)
class Comparison:
    """``difference`` is that of the logits, at most, relative to the largest."""

    difference: float
    tokens: int
    equal_tokens: int

    @property
    def holds(self) -> bool:
        return self.difference <= TOLERANCE and self.equal_tokens == self.tokens

    def __str__(self) -> str:
        return (
            f"largest difference of the logits {self.difference:.1e} of the largest logit; "
            f"{self.equal_tokens} of {self.tokens} generated tokens are the same"
        )


def compare(found: Answers, expected: Answers) -> Comparison:
    difference = (found.logits - expected.logits).abs().max() / expected.logits.abs().max()
    same = found.tokens == expected.tokens if found.tokens.shape == expected.tokens.shape else torch.zeros(1)
    return Comparison(float(difference), expected.tokens.numel(), int(same.sum()))


def room(config: Any) -> int:
    """How many tokens a model may be asked to write."""
    return min(TOKENS, getattr(config, "max_position_embeddings", TOKENS + 1) - 1)


@torch.inference_mode()
def ask(model: PreTrainedModel, source_size: int, target_size: int, length: int) -> Answers:
    """Answers of a float32 model to random ids, the same for every model with the same vocabularies."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    special = special_ids(config)

    def ids(length: int, size: int) -> Tensor:
        drawn = torch.randint(size, (8 * length,), generator=generator).tolist()
        return torch.tensor([i for i in drawn if i not in special][:length] or [0])

    sources = [ids(length, source_size) for length, _ in LENGTHS]
    targets = [ids(length, target_size) for _, length in LENGTHS]
    inputs = {
        "input_ids": _pad(sources, config.pad_token_id),
        "attention_mask": _pad([torch.ones_like(row) for row in sources], 0),
    }
    mask = _pad([torch.ones_like(row) for row in targets], 0).bool()
    # Without a cache: in-tree FSMT masks the future only then.
    logits = model(**inputs, decoder_input_ids=_pad(targets, config.pad_token_id), use_cache=False).logits[mask]
    lengths = {"max_new_tokens": length, "min_new_tokens": length}
    # No token twice: the output of a model that has no answer is otherwise one repeated id, and proves nothing.
    # No padding, which no trained model writes: within a sentence some families would give it no position.
    greedy = {
        "num_beams": 1,
        "do_sample": False,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [config.pad_token_id],
    }
    settings = model.generation_config
    # No settings of the checkpoint's own: by sampling, assistants, stop strings two models tell nothing of each other.
    model.generation_config = GenerationConfig(**{name: getattr(settings, name) for name in SPECIAL})
    try:
        tokens = model.generate(**inputs, **lengths, **greedy)  # type: ignore[operator]
    finally:
        model.generation_config = settings
    return Answers(logits, tokens[:, -length:])


def special_ids(config: Any) -> set[int]:
    """Of padding, starts and ends; there may be several of a kind, or none."""
    values = [getattr(config, name, None) for name in SPECIAL]
    return {i for value in values if value is not None for i in (value if isinstance(value, list) else [value])}


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
