"""One step of decoding: a token a row in, logits out, without masks, caches and outputs built anew every time.

B sources, N rows a source that share what they write (its beams; otherwise 1), P pools of such rows, R = P·N rows,
T tokens, H and K heads of size D, C model size. A small model's step is as long as its calls are many, so rows are
plain matrices (R·T, C), q, k and v are one product, and what depends on the position alone is computed ahead.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache

from .decoder import DecoderLayer
from .feed_forward import FeedForward
from .few_row_linears import FewRowLinear
from .position_encodings import apply_rotary
from .residual import Residual
from .source_attention import SourceAttention, suits

ROOM = 32  # columns that stores and tables begin with; they double when these are full
STEPS_WORTH_PACKING = 16  # in so many, copies of the weights save about what they cost
Sublayer = Callable[[Tensor], Tensor]


class DecodingStep:
    """What the decoder and the head compute, further by a token with every call. Made anew for every ``generate()``.

    ``states`` (R, S, C) and ``mask`` (R, S) are those of the source, the same for its ``copies`` rows; of these
    ``beams`` share what they write, all or, where rows do not swap places, one. Nobody will ask for more than ``limit``
    tokens, and a text is about as long as its source: that tells how soon the weights are worth copying.
    """

    def __init__(self, model: Any, states: Tensor, mask: Tensor | None, copies: int, beams: int, limit: int) -> None:
        self.decoder = decoder = model.base_model.decoder
        self.head = FewRowLinear(model.get_output_embeddings())
        self.scale = model.config.logits_scale
        self.copies, self.beams, self.pools = copies, beams, len(states) // beams
        self.dtype, self.device = states.dtype, states.device
        self.length = self.columns = self.calls = 0
        long = min(states.shape[1], limit) >= STEPS_WORTH_PACKING
        self.packs_at = 1 if long else STEPS_WORTH_PACKING  # steps
        self.biases = [layer.position_bias or decoder.position_bias for layer in decoder.layers]
        self.descent: Tensor | None = None  # (B, N, columns · N): 0 where a beam descends from another, else -inf
        self.source_mask = None
        if mask is not None and not mask.all():
            hidden = ~mask[::copies, None, None].bool()  # (B, 1, 1, S)
            self.source_mask = torch.zeros_like(hidden, dtype=self.dtype).masked_fill(hidden, -torch.inf)
        first = states[::copies]
        self.layers = [DecodingLayer(layer, first, self.source_mask, copies, beams) for layer in decoder.layers]

    @torch.inference_mode()  # a call of torch takes longer where autograd might ask for it, and the calls are many
    def __call__(self, ids: Tensor) -> Tensor:
        """Ids (R, T), a prompt at first and then a token a row, to the logits (R, V) of what comes next."""
        decoder, (rows, length) = self.decoder, ids.shape
        positions = torch.arange(self.length, self.length + length, device=self.device)[None]
        self.length += length
        self.calls += 1
        if self.calls == self.packs_at and rows > 1:
            for linear in [self.head, *(linear for layer in self.layers for linear in layer.linears)]:
                linear.pack(rows)
        x = decoder.embedding(decoder.embed_tokens(ids), positions, self.length, "target").flatten(0, 1)  # (R·T, C)
        if self.length > self.columns:
            self._grow()
        rotary = self.rotary and tuple(table.narrow(2, self.length - length, length) for table in self.rotary)
        mask = self._mask(length)
        masks = {bias: self._biased(bias, positions, mask) for bias in self.tables}
        for layer, bias in zip(self.layers, self.biases, strict=True):
            x = layer(x, length, rotary, masks[bias], self.source_mask)
        if length > 1:
            x = x.view(rows, length, -1)[:, -1]
        if decoder.norm is not None:
            x = decoder.norm(x)
        logits = self.head(x)
        return logits if self.scale == 1.0 else logits * self.scale

    def _grow(self) -> None:
        """Tables of what depends on the positions alone: rotary by position, a bias by distance from the last."""
        self.columns = max(ROOM, 2 * self.columns, self.length)
        positions = torch.arange(self.columns, device=self.device)[None]
        self.rotary: Any = None if self.decoder.rotary is None else self.decoder.rotary(positions, self.dtype)
        keys = positions.repeat_interleave(self.beams, dim=1)
        self.tables: dict[Any, Any] = {
            b: None if b is None else b(positions[:, -1:], keys).to(self.dtype) for b in self.biases
        }

    def _mask(self, length: int) -> Tensor | None:
        """What a query may look at, to be added: in a prompt what precedes it, in a pool its ancestors; None: all."""
        if self.beams > 1:
            own = self._blank(self.beams, self.beams).fill_diagonal_(0).repeat(1, length).expand(self.pools, -1, -1)
            self.descent = own if self.descent is None else torch.cat([self.descent, own], dim=2)
        if length > 1:
            return self._blank(length, length).triu(1)  # (T, T)
        return None if self.descent is None else self.descent[:, None]  # (P, 1, N, columns · N)

    def _biased(self, position_bias: Any, positions: Tensor, mask: Tensor | None) -> Tensor | None:
        if position_bias is None:
            return mask
        if positions.shape[1] > 1:
            bias = position_bias(positions, positions).to(self.dtype)
        else:
            before = (self.columns - self.length) * self.beams
            bias = self.tables[position_bias].narrow(3, before, self.length * self.beams)  # (1, H, 1, columns · N)
        return bias if mask is None else bias + mask

    def _blank(self, rows: int, columns: int) -> Tensor:
        return torch.full((rows, columns), -torch.inf, dtype=self.dtype, device=self.device)

    def reorder(self, parents: Tensor) -> None:
        """Beam n of source b goes on from beam ``parents[b, n]``. (B, N)."""
        assert self.descent is not None
        self.descent = self.descent.take_along_dim(parents[..., None], dim=1)

    def keep(self, sources: Tensor) -> None:
        """Go on with these sources alone, given by their index."""
        pools = sources
        if self.beams == 1:  # a pool a row
            pools = (sources[:, None] * self.copies + torch.arange(self.copies, device=self.device)).flatten()
        for layer in self.layers:
            layer.keep(sources, pools)
        self.pools = len(pools)
        self.source_mask = None if self.source_mask is None else self.source_mask[sources]
        self.descent = None if self.descent is None else self.descent[sources]

    def fill(self, cache: EncoderDecoderCache) -> None:
        """Give an empty cache of transformers' what its own loop would have left in it."""
        descent = None if self.descent is None else self.descent == 0
        for i, layer in enumerate(self.layers):
            cache.self_attention_cache.update(*layer.history(descent), i)
            keys, values = (x.repeat_interleave(self.copies, dim=0) for x in (layer.source_keys, layer.source_values))
            cache.cross_attention_cache.update(keys, values, i)
            cache.is_updated[i] = True


class DecodingLayer:
    """``x → x + self_attn(x) → x + cross_attn(x, source) → x + feed_forward(x)``, and what it has to remember.

    Keys and values of the source are computed once for its ``copies``. Those of the tokens written are kept in a
    ``store`` (P, 2K, columns · N, D). The beams of a source share one pool: no key moves when they swap places, and a
    mask tells which of them a beam descends from. Rows that are no beams have a pool each, and there N = 1.
    """

    def __init__(
        self, layer: DecoderLayer, states: Tensor, source_mask: Tensor | None, copies: int, beams: int
    ) -> None:
        attention, cross = layer.self_attn, layer.cross_attn
        self.size, self.grouped = attention.head_dim, attention.num_key_value_groups > 1
        self.scaling, self.source_scaling = attention.scaling, cross.scaling
        self.qkv = FewRowLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o, self.cross_q, self.cross_o = map(FewRowLinear, (attention.o_proj, cross.q_proj, cross.o_proj))
        self.feed_forward, linears = feed_forward_of(layer.feed_forward)
        self.linears = [self.qkv, self.o, self.cross_q, self.cross_o, *linears]
        residuals = layer.self_attn_residual, layer.cross_attn_residual, layer.feed_forward_residual
        self.residuals = [residual_of(residual) for residual in residuals]
        shape = (*states.shape[:2], -1, self.size)
        projections = cross.k_proj, cross.v_proj
        keys, values = (project(states).view(shape).transpose(1, 2).contiguous() for project in projections)
        self.source_keys, self.source_values = keys, values  # (B, K, S, D)
        self.multiplied_out: SourceAttention | None = None
        if suits(cross, keys):
            self.multiplied_out = SourceAttention(cross, keys, values, source_mask)
            self.linears = [self.qkv, self.o, *linears]
        self.copies, self.beams, self.kv_heads = copies, beams, keys.shape[1]
        self.q_heads = self.kv_heads * attention.num_key_value_groups
        self.length = 0  # columns · N
        self.store = keys.new_empty(len(states) * copies // beams, 2 * self.kv_heads, ROOM * beams, self.size)

    def __call__(self, x: Tensor, length: int, rotary: Any, mask: Tensor | None, source_mask: Tensor | None) -> Tensor:
        attend, attend_to_source, feed_forward = self.residuals
        x = attend(x, lambda x: self._attend(x, length, rotary, mask))
        x = attend_to_source(x, lambda x: self._attend_to_source(x, source_mask))
        return feed_forward(x, self.feed_forward)

    def _attend(self, x: Tensor, length: int, rotary: Any, mask: Tensor | None) -> Tensor:
        beams = self.beams if length == 1 else length  # a prompt sees itself, as long as no row has swapped places
        qkv = self.qkv(x).view(-1, beams, self.q_heads + 2 * self.kv_heads, self.size).transpose(1, 2)
        if rotary is not None:
            qk = qkv.narrow(1, 0, self.q_heads + self.kv_heads)
            qk.copy_(apply_rotary(qk, rotary))
        query, key_value = qkv.split((self.q_heads, 2 * self.kv_heads), dim=1)  # (P, H, N, D), (P, 2K, N, D)
        if length > 1:  # (R, 2K, T, D): token by token, and of a token beam by beam
            self._write(key_value.unflatten(0, (-1, self.beams)).permute(0, 2, 3, 1, 4).flatten(2, 3))
        else:
            self._write(key_value)
            key_value = self.store.narrow(2, 0, self.length)
        key, value = key_value.split(self.kv_heads, dim=1)
        return self.o(self._weigh(query, key, value, mask, self.scaling).view(x.shape[0], -1))

    def _attend_to_source(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.multiplied_out is not None:
            return self.multiplied_out(x)
        query = self.cross_q(x).view(len(self.source_keys), -1, self.q_heads, self.size).transpose(1, 2)
        y = self._weigh(query, self.source_keys, self.source_values, mask, self.source_scaling)
        return self.cross_o(y.view(x.shape[0], -1))

    def _weigh(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        y = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=self.grouped)
        return y.transpose(1, 2).flatten(2)  # (P, N, H·D)

    def _write(self, key_value: Tensor) -> None:
        count = key_value.shape[2]
        while self.length + count > self.store.shape[2]:
            self.store = torch.cat([self.store, torch.empty_like(self.store)], dim=2)
        self.store.narrow(2, self.length, count).copy_(key_value)
        self.length += count

    def keep(self, sources: Tensor, pools: Tensor) -> None:
        self.source_keys, self.source_values = self.source_keys[sources], self.source_values[sources]
        self.store = self.store[pools]

    def history(self, descent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values of every row (R, K, T, D); ``descent`` (P, N, columns · N) is true at those of a beam."""
        written = self.store.narrow(2, 0, self.length).transpose(1, 2)  # (P, columns · N, 2K, D)
        if descent is not None:
            written = written[:, None].expand(-1, self.beams, -1, -1, -1)[descent]
        written = written.reshape(len(self.store) * self.beams, -1, 2, self.kv_heads, self.size)
        keys, values = written.transpose(1, 3).unbind(2)
        return keys, values


def residual_of(module: Residual) -> Callable[[Tensor, Sublayer], Tensor]:
    """:class:`Residual` without dropout."""
    norm: Sublayer = module.norm.forward
    if module.placement == "pre":
        return lambda x, sublayer: x + sublayer(norm(x))
    return lambda x, sublayer: norm(x + sublayer(x))


def feed_forward_of(module: FeedForward) -> tuple[Sublayer, list[FewRowLinear]]:
    """:class:`FeedForward` without dropout, and its linear layers."""
    act: Sublayer = module.act.forward
    down = FewRowLinear(module.down_proj)
    if module.gate_proj is None:
        up = FewRowLinear(module.up_proj)
        return lambda x: down(act(up(x))), [up, down]
    both = FewRowLinear(module.up_proj, module.gate_proj)

    def gated(x: Tensor) -> Tensor:
        hidden, gate = both(x).chunk(2, dim=-1)
        return down(act(gate) * hidden)

    return gated, [both, down]
