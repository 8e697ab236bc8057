"""The task that shows whether a model learns at all: short random rows, to be written again."""

import math

import torch
from torch import Tensor

from dragoman import DragomanForConditionalGeneration

VOCABULARY, LENGTHS, COLUMNS = 15, range(3, 9), 9  # ids 0 to 2 are padding, start and end
MEAN_LENGTH = sum(LENGTHS) / len(LENGTHS)
# The entropy of a row, nats a token, its end counted: the best loss of a model that never looks at the source.
BLIND = (MEAN_LENGTH * math.log(VOCABULARY - 3) + math.log(len(LENGTHS))) / (MEAN_LENGTH + 1)


def sequences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows of 3 to 8 tokens out of 12, ended by 2 and padded with 0; and the lengths."""
    lengths = torch.randint(LENGTHS.start, LENGTHS.stop, (count,), generator=generator)
    ids = torch.randint(3, VOCABULARY, (count, COLUMNS), generator=generator)
    columns = torch.arange(COLUMNS)
    ids[columns > lengths[:, None]] = 0
    return ids.scatter(1, lengths[:, None], 2), lengths


def exact_match(model: DragomanForConditionalGeneration, ids: Tensor, target: Tensor) -> float:
    """The share of rows that greedy decoding writes without an error."""
    written = model.eval().generate(ids, max_new_tokens=COLUMNS)[:, 1:]
    written = torch.nn.functional.pad(written, (0, COLUMNS - written.shape[1]))
    return float((written == target).all(1).float().mean())
