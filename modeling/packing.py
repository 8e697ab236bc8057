"""Batches without padding: their sequences laid one after another in a single row.

N sequences, T queries and S keys in all; B, H, K, D as in attention.py. Everything but attention
(packed_attention.py) sees one long row.
"""

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Packing:
    """Which queries see which keys: those of their own sequence. It stands where a mask would.

    Sequence i is queries ``cu_seq_lens_q[i]`` to ``cu_seq_lens_q[i + 1]``, and its keys likewise. Neighbours of equal
    lengths form a run, which attention takes as a batch: nothing is padded or gathered, and no mask is needed. In a
    compiled graph, which is made for all lengths and cannot look at them, all sequences are one run, padded.
    """

    cu_seq_lens_q: Tensor  # (N + 1), from 0 to T
    cu_seq_lens_k: Tensor  # (N + 1), from 0 to S
    longest: tuple[int, int]  # of queries and of keys; in a graph, numbers that none is longer than
    runs: list[tuple[int, int, int]] | None  # so many sequences, of so many queries and keys each; None in a graph

    def queries(self, x: Tensor, dim: int) -> list[Tensor]:
        """(1, …, T, …), T at ``dim``, to (n, …, t, …) run by run. Views, but in a graph."""
        if self.runs is None:
            return [_padded(x, dim, self.cu_seq_lens_q, self.longest[0])]
        return _split(x, dim, [(n, t) for n, t, _ in self.runs])

    def keys(self, x: Tensor, dim: int) -> list[Tensor]:
        if self.runs is None:
            return [_padded(x, dim, self.cu_seq_lens_k, self.longest[1])]
        return _split(x, dim, [(n, s) for n, _, s in self.runs])

    def mask(self, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
        """What the keys of a run (n, K, s, D) hide: those behind a query where ``causal``, and padding."""
        if causal:  # hides the padding from all that is none
            return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        if self.runs is not None:
            return None
        columns = torch.arange(key.shape[2], device=key.device)
        return (columns < self.cu_seq_lens_k.diff()[:, None])[:, None, None]  # (N, 1, 1, s)

    def in_a_row(self, outputs: list[Tensor], length: int) -> Tensor:
        """(n, t, …) run by run to (1, T, …)."""
        row = [output.flatten(0, 1) for output in outputs]
        if self.runs is not None:
            return torch.cat(row)[None]
        sequence, position = _places(self.cu_seq_lens_q, length)
        return row[0][sequence * self.longest[0] + position][None]


def _split(x: Tensor, dim: int, sizes: list[tuple[int, int]]) -> list[Tensor]:
    parts = zip(x.split([n * length for n, length in sizes], dim), sizes, strict=True)
    return [part if n == 1 else part.unflatten(dim, (n, t)).movedim(dim, 1).flatten(0, 1) for part, (n, t) in parts]


def _padded(x: Tensor, dim: int, cu_seq_lens: Tensor, longest: int) -> Tensor:
    """(1, …, T, …) to (N, …, longest, …). Behind a sequence stands what comes next."""
    columns = cu_seq_lens[:-1, None] + torch.arange(longest, device=x.device)  # (N, longest)
    chosen = x[0].index_select(dim - 1, columns.clamp(max=x.shape[dim] - 1).flatten())
    return chosen.unflatten(dim - 1, columns.shape).movedim(dim - 1, 0)


def pack(
    x: Tensor,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    *,
    longest: tuple[int | None, int | None] = (None, None),
    **others: Any,
) -> Packing:
    """Lengths, looked at once for all layers; ``others`` are arguments that a packed batch cannot have.

    Raises:
        ValueError: for lengths that are not those of one packed row ``x`` (1, T, C), for an empty sequence, and for one
            that is longer than the ``longest`` of queries or keys. In a graph only for ``others``.
    """
    if given := [name for name, value in others.items() if value is not None and value is not False]:
        raise ValueError(
            f"A packed batch (cu_seq_lens) takes no {' or '.join(given)}: leave it out, or pad the batch "
            "(transformers.DataCollatorForSeq2Seq) to have it."
        )
    if torch.compiler.is_compiling():
        told = zip(longest, (cu_seq_lens_q, cu_seq_lens_k), strict=True)
        most_q, most_k = (int(ends.diff().max()) if most is None else most for most, ends in told)
        return Packing(cu_seq_lens_q, cu_seq_lens_k, (most_q, most_k), None)
    ends, key_ends = cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist()
    if x.shape[0] != 1 or ends[0] != 0 or ends[-1] != x.shape[1] or len(ends) != len(key_ends):
        raise ValueError(
            "cu_seq_lens and decoder_cu_seq_lens are the ends of N sequences in one row, 0 first, N + 1 numbers each: "
            f"they do not fit a batch of shape {tuple(x.shape[:2])} with ends {ends}, and {key_ends} to attend to. "
            "dragoman.DataCollatorForPackedSeq2Seq makes them."
        )
    queries, keys = ([end - start for start, end in pairwise(each)] for each in (ends, key_ends))
    if min(*queries, *keys) < 1:
        raise ValueError(
            f"cu_seq_lens and decoder_cu_seq_lens have to grow, got {ends} and {key_ends}: leave empty sequences out."
        )
    for most, lengths in zip(longest, (queries, keys), strict=True):
        if most is not None and max(lengths) > most:
            raise ValueError(
                f"A packed sequence has {max(lengths)} tokens, more than the {most} of max_seq_len or "
                "decoder_max_seq_len: dragoman.DataCollatorForPackedSeq2Seq makes them right."
            )
    runs = [(len(list(same)), t, s) for (t, s), same in groupby(zip(queries, keys, strict=True))]
    return Packing(cu_seq_lens_q, cu_seq_lens_k, (max(queries), max(keys)), runs)


def packed_positions(cu_seq_lens: Tensor, length: int) -> Tensor:
    """``0 1 2 … 0 1 …``: every sequence counts its own tokens. (1, T)."""
    return _places(cu_seq_lens, length)[1][None]


def _places(cu_seq_lens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Of every token, the number of its sequence, and its number in it. (T), (T)."""
    columns = torch.arange(length, device=cu_seq_lens.device)
    sequence = torch.searchsorted(cu_seq_lens, columns, right=True) - 1
    return sequence, columns - cu_seq_lens[sequence]


def bias_of(bias: nn.Module | None, query_positions: Tensor, key_positions: Tensor, mask: Any) -> Any:
    """The bias between all positions (B, H, T, S); of a packed row, run by run, between those that see each other."""
    if bias is not None and isinstance(mask, Packing):
        return packed_bias(bias, query_positions, key_positions, mask)
    return None if bias is None else bias(query_positions, key_positions)


def packed_bias(bias: nn.Module, query_positions: Tensor, key_positions: Tensor, packing: Packing) -> list[Tensor]:
    """(n, H, t, s) of each run."""
    runs = zip(packing.queries(query_positions, 1), packing.keys(key_positions, 1), strict=True)
    return [bias(queries, keys) for queries, keys in runs]
