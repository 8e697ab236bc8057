"""Attention through all layers: rollout and flow of Abnar & Zuidema 2020 (arXiv:2005.00928).

Encoder and decoder are one chain of mixtures over the N = S + T states of source and target, so both are defined for
cross-attention too (as in Ferrando et al. 2022, arXiv:2205.11631): a layer gives ``½ x + ½ attention``, and every row
of its matrix (N, N) sums to 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def mixtures(outputs: Any) -> list[Tensor]:
    """One matrix (N, N) an attention, from the first to the last; heads are averaged. The batch is one row.

    Raises ValueError where the outputs lack the weights of a side.
    """
    encoder = getattr(outputs, "encoder_attentions", None)
    if encoder is None:
        encoder = getattr(outputs, "attentions", None)
    decoder = getattr(outputs, "decoder_attentions", None)
    if not encoder or encoder[0] is None or (getattr(outputs, "cross_attentions", None) and not decoder):
        raise ValueError(
            "Rollout and flow follow self-attention through every layer, and the model returned none: recurrent "
            "models have none (use method='leave_one_out'), other models may need attn_implementation='eager'."
        )
    source = encoder[0].shape[-1]
    target = decoder[0].shape[-1] if decoder else 0
    chain = [_joined(source, target, rows=slice(0, source), columns=slice(0, source), weights=w) for w in encoder]
    for own, cross in zip(decoder or (), outputs.cross_attentions if decoder else (), strict=True):
        written = slice(source, source + target)
        chain.append(_joined(source, target, rows=written, columns=written, weights=own))
        chain.append(_joined(source, target, rows=written, columns=slice(0, source), weights=cross))
    return chain


def _joined(source: int, target: int, rows: slice, columns: slice, weights: Tensor) -> Tensor:
    """The identity, but for ``rows``: half themselves, half what they attend to among ``columns``."""
    matrix = torch.eye(source + target, dtype=torch.float64)
    matrix[rows] *= 0.5
    matrix[rows, columns] += 0.5 * weights[0].mean(dim=0).double().cpu()
    return matrix


def rollout(chain: Sequence[Tensor], readout: Tensor) -> Tensor:
    """``readoutᵀ Aₙ … A₁``: how much of each input (N,) the states that are read hold, if layers only mixed."""
    held = readout.double().cpu()
    for matrix in reversed(chain):
        held = held @ matrix
    return held


def flow(chain: Sequence[Tensor], readout: Tensor) -> Tensor:
    """The largest flow from the states that are read to each input (N,), mixtures' weights being the capacities.

    One maximum flow an input, by networkx: seconds for a long sentence.
    """
    import networkx  # of torch's own requirements; slow to import

    graph = networkx.DiGraph()
    for state in readout.nonzero()[:, 0].tolist():
        graph.add_edge("read", (len(chain), state), capacity=float(readout[state]))
    for depth, matrix in enumerate(chain):
        for row, column in matrix.nonzero().tolist():
            graph.add_edge((depth + 1, row), (depth, column), capacity=float(matrix[row, column]))
    dinitz = networkx.algorithms.flow.dinitz
    flows = [networkx.maximum_flow_value(graph, "read", (0, i), flow_func=dinitz) for i in range(len(readout))]
    return torch.tensor(flows, dtype=torch.float64)
