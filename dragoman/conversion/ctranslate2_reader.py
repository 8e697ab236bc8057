"""A CTranslate2 folder into a Dragoman model: ``read_ctranslate2``.

The engine's quirks: sinusoids that it computes itself run to wavelength 20000π and give the first token position 1;
queries, keys and values lie in one matrix; a norm without ``beta`` is an RMSNorm. ``generate`` finds the words that
``translate_batch(beam_size=n)`` does with ``num_beams=n, early_stopping=True, min_new_tokens=1,
renormalize_logits=True, max_new_tokens=256``: the engine forbids an end at the first step before it normalises.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration.configuration_dragoman import DragomanConfig
from ..modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from .ctranslate2_fields import read_fields
from .ctranslate2_files import read_folder
from .ctranslate2_layout import parameter_map
from .ctranslate2_tokens import order_tokens, read_tokenizer

_BY_TOKEN = {  # variables that have a row for each token, and whose tokens
    "encoder/embeddings_0/weight": "source",
    "decoder/embeddings/weight": "target",
    "decoder/projection/weight": "target",
    "decoder/projection/bias": "target",
}


def read_ctranslate2(path: str | os.PathLike[str]) -> tuple[DragomanForConditionalGeneration, Any | None]:
    """Model, in float32, and tokenizer; None where the folder does not say how text becomes tokens.

    Where special tokens have different ids on the two sides, they are moved to the front of both, with their rows.

    Raises:
        FileNotFoundError: for a folder that lacks a file.
        ValueError: for a broken file; for what Dragoman has no option for, all reasons together.
    """
    folder = Path(path)
    engine = read_folder(folder)
    order = order_tokens(engine)
    variables = {
        name.replace("encoder/embeddings/", "encoder/embeddings_0/"): t for name, t in engine.variables.items()
    }
    for name, side in _BY_TOKEN.items():
        rows, tokens = (order.source_rows, order.source) if side == "source" else (order.target_rows, order.target)
        if name in variables:
            if len(variables[name]) != len(tokens):
                raise ValueError(f"{name} has {len(variables[name])} rows for {len(tokens)} {side} tokens.")
            variables[name] = variables[name][rows]
    config, tensors, problems = read_fields(engine, order, variables)
    model = DragomanForConditionalGeneration(config)
    state, more = _state(config, tensors, model.state_dict())
    if problems or more:
        raise ValueError(f"{folder} cannot be a Dragoman model: {'; '.join([*problems, *more])}.")
    model.load_state_dict(state)
    model.tie_weights()
    model.generation_config.max_new_tokens = 256  # the engine's own limit
    return model.eval(), read_tokenizer(folder, engine, order)


def _state(
    config: DragomanConfig, tensors: dict[str, Tensor], expected: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters cut out of the engine's variables, and what is missing, left over or of another shape."""
    state: dict[str, Tensor] = {}
    problems, used = [], set()
    for variable, names in parameter_map(config).items():
        used.add(variable)
        rows = [len(expected[name]) for name in names]
        shape = [sum(rows), *expected[names[0]].shape[1:]]
        value = tensors.get(variable)
        if value is None and variable.endswith("/bias"):  # others of its kind have one
            value = torch.zeros(shape)
        if value is None:
            problems.append(f"{variable} is missing")
        elif list(value.shape) != shape:
            problems.append(f"{variable} has shape {list(value.shape)} instead of {shape}")
        else:
            state |= dict(zip(names, value.split(rows), strict=True))
    if "lm_head.bias" in state:  # the engine scales what goes into the head, Dragoman what comes out
        state["lm_head.bias"] = state["lm_head.bias"] / config.logits_scale
    left = sorted(set(tensors) - used)
    return state, problems + ([f"there is no place for {', '.join(left)}"] if left else [])
