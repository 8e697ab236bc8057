"""The four steps on the road to attention, as models with the same number of parameters.

==============  ==================================================================  ================
fixed           GRU whose decoder knows the encoder's last state and no more        Cho et al. 2014
additive        GRU that looks back before each step                                Bahdanau 2015
dot             GRU that looks back after each step                                 Luong 2015
transformer     attention and nothing recurrent, in four heads                      Vaswani 2017
one-head        the same with one head as wide as the four                          its ablation
==============  ==================================================================  ================
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from dragoman import DragomanConfig, DragomanRecurrentConfig, presets

MODELS = ("fixed", "additive", "dot", "transformer")
NAMES = {
    "fixed": "GRU, fixed context",
    "additive": "GRU + additive attention",
    "dot": "GRU + dot attention",
    "transformer": "Transformer",
    "one-head": "Transformer, one head",
}
WIDTH, HEADS, LAYERS = 64, 4, 2  # of the Transformer, which sets the budget
TOLERANCE = 0.02  # of the number of parameters


def build_config(model: str, fields: dict[str, Any], both_ways: bool, width: int = WIDTH) -> PreTrainedConfig:
    """The configuration of ``model``. ``fields`` are those every model has, such as ``vocab_size``.

    ``both_ways`` is whether recurrent encoders read in both directions. ``width`` is the Transformer's; the others
    get the hidden size that gives them as many parameters.

    Raises:
        ValueError: for an unknown model, or where no size comes near the budget.
    """
    if model not in NAMES:
        raise ValueError(f"There is no model {model!r}; choose from {', '.join(NAMES)}.")
    transformer = build_transformer(fields, width, heads=1 if model == "one-head" else HEADS)
    if model in ("transformer", "one-head"):
        return transformer
    attention: Any = "none" if model == "fixed" else model

    def with_size(size: int) -> DragomanRecurrentConfig:
        return DragomanRecurrentConfig(hidden_size=size, attention=attention, bidirectional=both_ways, **fields)

    return with_size(find_hidden_size(count_parameters(transformer), lambda size: count_parameters(with_size(size))))


def build_transformer(fields: dict[str, Any], width: int, heads: int) -> DragomanConfig:
    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": heads, "intermediate_size": 2 * width}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    # Sinusoids, as in 2017: cross-attention sees them, rotary positions it does not, and copying is looking at a place.
    return presets.small(hidden_size=width, position_encoding="sinusoidal", **both, **fields)


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_config(config)


def count_parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):  # nothing is allocated
        return build_model(config).num_parameters()


def find_hidden_size(budget: int, count: Callable[[int], int]) -> int:
    """The even size for which ``count`` comes nearest to ``budget``; ``count`` must grow with it.

    Raises:
        ValueError: where it is off by more than ``TOLERANCE``.
    """
    low, high = 1, 2  # halves of sizes
    while count(2 * high) < budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(2 * middle) < budget else (low, middle)
    size = min((2 * low, 2 * high), key=lambda size: abs(count(size) - budget))
    if abs(count(size) / budget - 1) > TOLERANCE:
        raise ValueError(
            f"No hidden size gives {budget:,} parameters within {TOLERANCE:.0%}: {2 * low} gives {count(2 * low):,}, "
            f"{2 * high} gives {count(2 * high):,}. A larger --width makes the steps finer."
        )
    return size
