"""One step of decoding: a token a row in, logits out, without masks, caches and outputs built anew every time."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from .decoding_layer import DecodingLayer
from .few_row_linears import FewRowLinear

STEPS_BEFORE_PACKING = 16  # by then copies of the weights have cost about what they would have saved


class DecodingStep:
    """What the decoder and the head compute, further by a token with every call. Made anew for every ``generate()``.

    ``states`` (R, S, C) and ``mask`` (R, S) are those of the source, the same for its ``copies`` rows; of these
    ``beams`` share what they write, all or, where rows do not swap places, one.
    """

    def __init__(self, model: Any, states: Tensor, mask: Tensor | None, copies: int, beams: int) -> None:
        self.decoder = decoder = model.base_model.decoder
        self.head = FewRowLinear(model.get_output_embeddings())
        self.scale = model.config.logits_scale
        self.copies, self.beams = copies, beams
        self.sources, self.pools = len(states) // copies, len(states) // beams
        self.dtype, self.device = states.dtype, states.device
        self.length = self.calls = 0
        self.layers = [DecodingLayer(layer, states[::copies], copies, self.pools, beams) for layer in decoder.layers]
        self.descent: Tensor | None = None  # (B, N, columns · N): 0 where a beam descends from another, else -inf
        self.source_mask = None
        if mask is not None and not mask.all():
            hidden = ~mask[::copies, None, None].bool()  # (B, 1, 1, S)
            self.source_mask = torch.zeros_like(hidden, dtype=self.dtype).masked_fill(hidden, -torch.inf)

    def __call__(self, ids: Tensor) -> Tensor:
        """Ids (R, T), a prompt at first and then a token a row, to the logits (R, V) of what comes next."""
        decoder, length = self.decoder, ids.shape[1]
        positions = torch.arange(self.length, self.length + length, device=self.device)[None]
        self.length += length
        self.calls += 1
        if self.calls == STEPS_BEFORE_PACKING and len(ids) > 1:
            for linear in [self.head, *(linear for layer in self.layers for linear in layer.linears())]:
                linear.pack(len(ids))
        x = decoder.embedding(decoder.embed_tokens(ids), positions, self.length, "target")  # (R, T, C)
        rotary = None if decoder.rotary is None else decoder.rotary(positions, self.dtype)
        mask = self._mask(length)
        biased = self._biased(decoder.position_bias, positions, mask)
        for layer in self.layers:
            if layer.position_bias is not None:
                biased = self._biased(layer.position_bias, positions, mask)
            x = layer(x, rotary, biased, self.source_mask)
        x = x[:, -1]
        if decoder.norm is not None:
            x = decoder.norm(x)
        (logits,) = self.head(x)
        return logits if self.scale == 1.0 else logits * self.scale

    def _mask(self, length: int) -> Tensor | None:
        """What a query may look at, to be added: in a prompt what precedes it, in a pool its ancestors; None: all."""
        if self.beams > 1:
            own = self._blank(self.beams, self.beams).fill_diagonal_(0).repeat(1, length).expand(self.pools, -1, -1)
            self.descent = own if self.descent is None else torch.cat([self.descent, own], dim=2)
        if length > 1:
            return self._blank(length, length).triu(1)  # (T, T)
        return None if self.descent is None else self.descent[:, None]  # (B, 1, N, columns · N)

    def _biased(self, position_bias: Any, positions: Tensor, mask: Tensor | None) -> Tensor | None:
        if position_bias is None:
            return mask
        keys = positions
        if positions.shape[1] == 1:
            keys = torch.arange(self.length, device=self.device)[None].repeat_interleave(self.beams, dim=1)
        bias = position_bias(positions, keys).to(self.dtype)
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
        self.sources, self.pools = len(sources), len(pools)
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
