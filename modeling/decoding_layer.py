"""A decoder layer, one token a row further: the layer's own parts, with attention arranged for single queries.

B sources, N rows a source (its beams, or its samples), R = B·N rows, T tokens, H and K heads of size D, C model size.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import Attention
from .decoder import DecoderLayer
from .feed_forward import FeedForward
from .few_row_linears import FewRowLinear
from .position_encodings import apply_rotary
from .residual import Residual

ROOM = 32  # columns that a pool begins with; it doubles when they are full
Sublayer = Callable[[Tensor], Tensor]


class DecodingLayer:
    """``x → x + self_attn(x) → x + cross_attn(x, source) → x + feed_forward(x)``, and what it has to remember.

    Keys and values of the source are computed once for its N rows. Those of the tokens written are kept in ``pools``
    (P, columns, N, K, D). The beams of a source share one pool: no key moves when they swap places, and a mask tells
    which of them a beam descends from. Rows that are no beams have a pool each, and there N = 1.
    """

    def __init__(self, layer: DecoderLayer, states: Tensor, copies: int, pools: int, beams: int) -> None:
        self.self_attn, self.cross_attn = layer.self_attn, layer.cross_attn
        self.qkv = FewRowLinear(self.self_attn.q_proj, self.self_attn.k_proj, self.self_attn.v_proj)
        self.cross_q = FewRowLinear(self.cross_attn.q_proj)
        self.outputs = FewRowLinear(self.self_attn.o_proj), FewRowLinear(self.cross_attn.o_proj)
        residuals = layer.self_attn_residual, layer.cross_attn_residual, layer.feed_forward_residual
        self.self_attn_residual, self.cross_attn_residual, self.feed_forward_residual = map(residual_of, residuals)
        self.feed_forward, self.feed_forward_linears = feed_forward_of(layer.feed_forward)
        self.position_bias = layer.position_bias
        self.copies, self.pools, self.beams = copies, pools, beams
        self.sources = len(states)
        key, value = FewRowLinear(self.cross_attn.k_proj, self.cross_attn.v_proj)(states)
        shape = (self.sources, states.shape[1])
        self.source_keys = heads(key, shape, self.cross_attn).contiguous()  # (B, K, S, D)
        self.source_values = heads(value, shape, self.cross_attn).contiguous()
        self.length = 0
        room = (pools, ROOM, beams, self.source_keys.shape[1], self.self_attn.head_dim)
        self.keys, self.values = states.new_empty(room), states.new_empty(room)

    def __call__(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        source_mask: Tensor | None,
    ) -> Tensor:
        rows, length, _ = x.shape

        def attend(x: Tensor) -> Tensor:
            shape = (self.pools, self.beams) if length == 1 else (rows, length)
            query, key, value = (heads(y, shape, self.self_attn) for y in self.qkv(x))
            if rotary is not None:
                query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
            self._write(key, value, length)
            if length == 1:  # a prompt sees itself, as long as no row has swapped places
                key, value = self._written(self.keys), self._written(self.values)
            return self._weigh(self.self_attn, 0, x, query, key, value, mask)

        def attend_to_source(x: Tensor) -> Tensor:
            (query,) = self.cross_q(x)
            query = heads(query, (self.sources, self.copies * length), self.cross_attn)
            return self._weigh(self.cross_attn, 1, x, query, self.source_keys, self.source_values, source_mask)

        x = self.self_attn_residual(x, attend)
        x = self.cross_attn_residual(x, attend_to_source)
        return self.feed_forward_residual(x, self.feed_forward)

    def _weigh(
        self,
        attention: Attention,
        which: int,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        grouped = attention.num_key_value_groups > 1
        y = F.scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling, enable_gqa=grouped)
        return self.outputs[which](y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))[0]  # (R, T, C)

    def _write(self, key: Tensor, value: Tensor, length: int) -> None:
        """Append keys and values, of a step (P, K, N, D) or of a prompt (R, K, T, D)."""
        while self.length + length > self.keys.shape[1]:
            self.keys = torch.cat([self.keys, torch.empty_like(self.keys)], dim=1)
            self.values = torch.cat([self.values, torch.empty_like(self.values)], dim=1)
        for pool, x in ((self.keys, key), (self.values, value)):
            if length == 1:
                pool[:, self.length] = x.transpose(1, 2)  # (P, N, K, D)
            else:
                prompts = x.unflatten(0, (self.pools, self.beams))  # (P, N, K, T, D)
                pool[:, self.length : self.length + length] = prompts.permute(0, 3, 1, 2, 4)
        self.length += length

    def _written(self, pool: Tensor) -> Tensor:
        """All keys or values so far, token by token and beam by beam. (P, K, columns · N, D)."""
        return pool[:, : self.length].flatten(1, 2).transpose(1, 2)

    def keep(self, sources: Tensor, pools: Tensor) -> None:
        self.sources, self.pools = len(sources), len(pools)
        self.source_keys, self.source_values = self.source_keys[sources], self.source_values[sources]
        self.keys, self.values = self.keys[pools], self.values[pools]

    def linears(self) -> list[FewRowLinear]:
        return [self.qkv, self.cross_q, *self.outputs, *self.feed_forward_linears]

    def history(self, descent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values of every row (R, K, T, D); ``descent`` (B, N, columns · N) is true at those of a beam."""
        keys, values = (self._written(pool).transpose(1, 2) for pool in (self.keys, self.values))
        if descent is not None:
            keys, values = (x[:, None].expand(-1, self.beams, -1, -1, -1)[descent] for x in (keys, values))
        shape = (self.pools * self.beams, self.length, -1, self.self_attn.head_dim)
        return keys.reshape(shape).transpose(1, 2), values.reshape(shape).transpose(1, 2)


def heads(x: Tensor, shape: tuple[int, int], attention: Attention) -> Tensor:
    return x.view(*shape, -1, attention.head_dim).transpose(1, 2)  # (R, T, H·D) -> (*, H, *, D)


def residual_of(module: Residual) -> Callable[[Tensor, Sublayer], Tensor]:
    """:class:`Residual` without dropout."""
    norm = module.norm.forward
    if module.placement == "pre":
        return lambda x, sublayer: x + sublayer(norm(x))
    return lambda x, sublayer: norm(x + sublayer(x))


def feed_forward_of(module: FeedForward) -> tuple[Sublayer, list[FewRowLinear]]:
    """:class:`FeedForward` without dropout, and its linear layers."""
    act = module.act.forward
    gated = module.gate_proj is not None
    up = FewRowLinear(module.up_proj, module.gate_proj) if gated else FewRowLinear(module.up_proj)  # type: ignore[arg-type]
    down = FewRowLinear(module.down_proj)

    def plain(x: Tensor) -> Tensor:
        return down(act(*up(x)))[0]

    def with_gate(x: Tensor) -> Tensor:
        hidden, gate = up(x)
        return down(act(gate) * hidden)[0]

    return with_gate if gated else plain, [up, down]
