"""One step of decoding: a token a row in, logits out. The decoder's own parts, with attention arranged for single queries.

B sources, N rows a source (its beams, or its samples), R = B·N rows, T tokens, H and K heads, D head size, C model size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache

from .attention import Attention
from .decoder import Decoder, DecoderLayer
from .feed_forward import FeedForward
from .few_row_linears import few_row_linears, with_few_row_linears
from .position_encodings import apply_rotary

GONE_INTO = (Decoder, nn.ModuleList, DecoderLayer, Attention, FeedForward)
ROOM = 32  # columns that a store begins with; it doubles when they are full
STEPS_BEFORE_PACKING = 16  # by then packing has about been earned by what it would have saved


class Store:
    """Keys and values of one layer, of everything written so far: two tensors (P, columns, N, K·D).

    The N beams of a source share a pool: none of their keys moves when beams swap places, a mask tells which of them a
    beam descends from. Rows that are no beams have a pool each, N = 1.
    """

    def __init__(self, pools: int, beams: int) -> None:
        self.pools, self.beams = pools, beams
        self.length = 0
        self.tensors: list[Tensor] = []

    def append(self, *new: Tensor) -> list[Tensor]:
        """Take keys and values (R, K, T, D) of a prompt, or (P, K, N, D) of a step; give all back (P, K, S, D)."""
        length = new[0].shape[2] * new[0].shape[0] // (self.pools * self.beams)
        if not self.tensors:
            self.tensors = [x.new_empty(self.pools, max(ROOM, length), self.beams, x.shape[1] * x.shape[3]) for x in new]
        while self.length + length > self.tensors[0].shape[1]:
            self.tensors = [torch.cat([x, torch.empty_like(x)], dim=1) for x in self.tensors]
        columns = slice(self.length, self.length + length)
        self.length += length
        for tensor, x in zip(self.tensors, new, strict=True):
            x = x.transpose(1, 2).reshape(self.pools, self.beams, length, -1)
            tensor[:, columns] = x.transpose(1, 2)
        if self.length == length:  # a prompt sees itself
            return list(new)
        width = self.length * self.beams
        size = new[0].shape[3]
        return [x[:, : self.length].view(self.pools, width, -1, size).transpose(1, 2) for x in self.tensors]

    def keep(self, pools: Tensor) -> None:
        self.pools = len(pools)
        self.tensors = [x[pools] for x in self.tensors]


class DecodingStep:
    """What the decoder computes, one token further with every call. Made anew for every call of ``generate()``.

    ``states`` (R, S, C) and ``mask`` (R, S) are the encoder's, the same for the ``copies`` rows of a source.
    """

    def __init__(self, model: Any, states: Tensor, mask: Tensor | None, copies: int, beams: int) -> None:
        self.decoder: Any = with_few_row_linears(model.base_model.decoder, GONE_INTO)
        self.head = with_few_row_linears(model.get_output_embeddings(), ())
        self.scale = model.config.logits_scale
        self.copies, self.beams = copies, beams
        self.sources = len(states) // copies
        self.pools = len(states) // beams
        self.length = self.steps = 0
        self.device = states.device
        self.stores = [Store(self.pools, beams) for _ in self.decoder.layers]
        self.ancestry: Tensor | None = None  # (B, N, columns · N), additive
        states = states[::copies]
        self.sees: list[tuple[Tensor, Tensor]] = []  # of each layer: keys and values of the source (B, K, S, D)
        for layer in self.decoder.layers:
            attention = layer.cross_attn
            key, value = attention._split_heads(attention.k_proj(states)), attention._split_heads(attention.v_proj(states))
            self.sees.append((key.contiguous(), value.contiguous()))
        self.source_mask = None
        if mask is not None and not mask.all():
            mask = mask[::copies, None, None].bool()  # (B, 1, 1, S)
            self.source_mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, -torch.inf)

    def __call__(self, ids: Tensor) -> Tensor:
        """Ids (R, T), the prompt at first and a token a row from then on, to the logits (R, V) of what comes next."""
        decoder, length = self.decoder, ids.shape[1]
        positions = torch.arange(self.length, self.length + length, device=self.device)[None]
        self.length += length
        self.steps += 1
        if self.steps == STEPS_BEFORE_PACKING and len(ids) > 1:
            for linear in few_row_linears(self.decoder, self.head):
                linear.pack(len(ids))
        x = decoder.embedding(decoder.embed_tokens(ids), positions, self.length, "target")  # (R, T, C)
        rotary = None if decoder.rotary is None else decoder.rotary(positions, x.dtype)
        keys = positions
        if length == 1:
            keys = torch.arange(self.length, device=self.device)[None].repeat_interleave(self.beams, dim=1)
        mask = self._mask(length, x.dtype)
        biased = mask if decoder.position_bias is None else plus(decoder.position_bias(positions, keys), mask)
        for layer, store, source in zip(decoder.layers, self.stores, self.sees, strict=True):
            if layer.position_bias is not None:
                biased = plus(layer.position_bias(positions, keys), mask)
            x = self._layer(layer, x, store, source, rotary, biased)
        x = x[:, -1]
        if decoder.norm is not None:
            x = decoder.norm(x)
        logits = self.head(x)
        return logits if self.scale == 1.0 else logits * self.scale

    def _layer(
        self,
        layer: DecoderLayer,
        x: Tensor,
        store: Store,
        source: tuple[Tensor, Tensor],
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            attention = layer.self_attn
            shape = (self.pools, self.beams) if x.shape[1] == 1 else x.shape[:2]
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            query, key, value = (split(projection(x), shape, attention) for projection in projections)
            if rotary is not None:
                query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
            return self._weigh(attention, x, query, *store.append(key, value), mask)

        def attend_to_source(x: Tensor) -> Tensor:
            attention = layer.cross_attn
            query = split(attention.q_proj(x), (self.sources, self.copies * x.shape[1]), attention)
            return self._weigh(attention, x, query, *source, self.source_mask)

        x = layer.self_attn_residual(x, attend)
        x = layer.cross_attn_residual(x, attend_to_source)
        return layer.feed_forward_residual(x, layer.feed_forward)

    def _weigh(
        self, attention: Attention, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        grouped = attention.num_key_value_groups > 1
        y = F.scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling, enable_gqa=grouped)
        return attention.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))  # (R, T, C)

    def _mask(self, length: int, dtype: torch.dtype) -> Tensor | None:
        """What a query may look at, to be added: causal in a prompt, its ancestry in a pool. None: everything."""
        if self.beams > 1:
            own = blank(self.beams, self.beams, dtype, self.device).fill_diagonal_(0).repeat(1, length)
            own = own.expand(self.pools, -1, -1)  # (B, N, length · N)
            self.ancestry = own if self.ancestry is None else torch.cat([self.ancestry, own], dim=2)
        if length > 1:
            return blank(length, length, dtype, self.device).triu(1)
        return None if self.ancestry is None else self.ancestry[:, None]  # (B, 1, N, S)

    def reorder(self, parents: Tensor) -> None:
        """Beam n of source b goes on from beam ``parents[b, n]``. (B, N)."""
        assert self.ancestry is not None
        self.ancestry = self.ancestry.take_along_dim(parents[..., None], dim=1)

    def keep(self, sources: Tensor) -> None:
        """Go on with these sources alone, given by their index."""
        rows = sources
        if self.beams == 1:  # a pool a row
            rows = (sources[:, None] * self.copies + torch.arange(self.copies, device=self.device)).flatten()
        for store in self.stores:
            store.keep(rows)
        self.sources, self.pools = len(sources), len(rows)
        self.sees = [(key[sources], value[sources]) for key, value in self.sees]
        self.source_mask = None if self.source_mask is None else self.source_mask[sources]
        self.ancestry = None if self.ancestry is None else self.ancestry[sources]

    def fill(self, cache: EncoderDecoderCache) -> None:
        """Give what was seen and written to an empty cache of transformers', a row for every row."""
        for i, (store, source) in enumerate(zip(self.stores, self.sees, strict=True)):
            written = []
            for x in store.tensors:
                x = x[:, : store.length].flatten(1, 2)  # (P, S, K·D)
                if self.ancestry is not None:
                    x = x[:, None].expand(-1, self.beams, -1, -1)[self.ancestry == 0]
                x = x.reshape(self.pools * self.beams, store.length, -1, source[0].shape[3])
                written.append(x.transpose(1, 2).contiguous())
            cache.self_attention_cache.update(*written, i)
            cache.cross_attention_cache.update(*(x.repeat_interleave(self.copies, dim=0) for x in source), i)
            cache.is_updated[i] = True


def split(x: Tensor, shape: tuple[int, int] | torch.Size, attention: Attention) -> Tensor:
    return x.view(*shape, -1, attention.head_dim).transpose(1, 2)  # (R, T, H·D) -> (*, H, *, D)


def plus(bias: Tensor, mask: Tensor | None) -> Tensor:
    return bias if mask is None else bias + mask


def blank(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((rows, columns), -torch.inf, dtype=dtype, device=device)
