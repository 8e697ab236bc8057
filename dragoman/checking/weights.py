"""Weights under which nothing passes by being uniform: attention far from even, logits of ordinary size."""

import re

import torch
from torch import nn

TABLE = 0.3  # standard deviation of token and position vectors
RECURRENT_TABLE = 1.0  # where no norm makes them that size
GATES = {nn.GRU: 2.0, nn.LSTM: 3.2}  # times 1/√fan_in: each gate makes states smaller, and an LSTM has more of them
SHARPNESS = 2**0.5  # scores of standard deviation 2: far from even, and no sharper, for rounding grows with it
SCORE_VECTOR = 4.0  # of additive attention, times 1/√fan_in: what it weighs lies between −1 and 1
JITTER = 0.3  # added to norms, biases and whatever else is one number a channel
QUERY_OR_KEY = re.compile(r"(^|\.)(to_)?(q|k|query|key)(_proj)?\.weight$")


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int = 0) -> None:
    """Draw every trained parameter: matrices with standard deviation ``1/√fan_in``, queries and keys √2 times that.

    Sinusoidal tables, which are parameters in some models, are not trained and stay.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    recurrent = [type(module) for module in model.modules() if isinstance(module, nn.GRU | nn.LSTM)]
    # T5 and its descendants do not divide scores by √d: their queries carry the factor.
    unscaled = getattr(getattr(model, "config", None), "d_kv", None)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.add_(JITTER * noise)
            continue
        std = parameter[0].numel() ** -0.5
        if parameter.dim() == 2 and "bias" in name:  # a number a head and a distance
            std = 1.0
        elif id(parameter) in tables:
            std = RECURRENT_TABLE if recurrent else TABLE
        elif ".rnn." in name:
            std *= GATES[recurrent[0]]
        elif "score_vector" in name:
            std *= SCORE_VECTOR
        elif QUERY_OR_KEY.search(name):
            std *= SHARPNESS
            if unscaled and name.endswith(".q.weight"):
                std *= unscaled**-0.5
        parameter.copy_(std * noise)
