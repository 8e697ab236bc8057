"""torch.nn.Transformer and x-transformers as subjects of the check: the thinnest adapter that takes its inputs.

Neither has a loss, a Trainer or ``generate()`` in Hugging Face's sense, so the lines on those are left out. Token
vectors, and for ``nn.Transformer`` the head, are the adapter's; so that positions are no matter of the adapter,
``nn.Transformer`` goes without.
"""

from functools import partial
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from x_transformers import XTransformer

from dragoman.checking.subjects import Subject
from dragoman.checking.weights import draw_weights

logger.disable("x_transformers")  # it advises larger heads for language models

VOCABULARY, SIZE, HEADS, FEED_FORWARD = 48, 32, 4, 64
PAD, START, END = 0, 1, 2


class TorchTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, SIZE)
        self.transformer = nn.Transformer(SIZE, HEADS, 3, 2, FEED_FORWARD, dropout=0.0, batch_first=True)
        self.lm_head = nn.Linear(SIZE, VOCABULARY)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        use_cache: bool = False,
    ) -> Seq2SeqLMOutput:
        hidden = ~attention_mask.bool()
        target_hidden = None if decoder_attention_mask is None else ~decoder_attention_mask.bool()
        length = decoder_input_ids.shape[1]
        states = self.transformer(
            self.embed_tokens(input_ids),
            self.embed_tokens(decoder_input_ids),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            tgt_is_causal=True,
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
            tgt_key_padding_mask=target_hidden,
        )
        return Seq2SeqLMOutput(logits=self.lm_head(states))

    def get_encoder(self) -> Any:
        raise NotImplementedError("nn.Transformer has no cache")


class XTransformers(nn.Module):
    def __init__(self, rotary: bool) -> None:
        super().__init__()
        sides = {"num_tokens": VOCABULARY, "max_seq_len": 64, "heads": HEADS, "attn_dim_head": SIZE // HEADS}
        sides |= {"use_abs_pos_emb": not rotary, "rotary_pos_emb": rotary}
        encoder = {f"enc_{name}": value for name, value in {**sides, "depth": 3}.items()}
        decoder = {f"dec_{name}": value for name, value in {**sides, "depth": 2}.items()}
        self.model = XTransformer(dim=SIZE, pad_value=PAD, **encoder, **decoder)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        states = self.model.encoder(input_ids, mask=attention_mask.bool(), return_embeddings=True)
        return BaseModelOutput(last_hidden_state=states)

    def get_encoder(self) -> Any:
        return self.encode

    def forward(
        self,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Seq2SeqLMOutput:
        states = self.encode(input_ids, attention_mask) if encoder_outputs is None else encoder_outputs
        ids, cache = (decoder_input_ids, None) if past_key_values is None else past_key_values
        if past_key_values is not None:
            ids = torch.cat([ids, decoder_input_ids], dim=1)  # as its own generate(): all ids, with the cache
        logits, cache = self.model.decoder.net(
            ids,
            mask=None if decoder_attention_mask is None else decoder_attention_mask.bool(),
            context=states.last_hidden_state,
            context_mask=attention_mask.bool(),
            cache=cache,
            return_intermediates=True,
        )
        logits = logits[:, -decoder_input_ids.shape[1] :]
        return Seq2SeqLMOutput(logits=logits, past_key_values=(ids, cache) if use_cache else None)


def adapted(name: str, module: type[nn.Module], **options: Any) -> Subject:
    def build(implementation: str | None) -> nn.Module:
        torch.manual_seed(0)
        model = module(**options)
        draw_weights(model)
        return model.eval()

    return Subject(
        name=name,
        build=build,
        source_vocabulary=VOCABULARY,
        target_vocabulary=VOCABULARY,
        pad=PAD,
        end=END,
        start=START,
        special=frozenset({PAD, START, END}),
        forward_only=True,
    )


PEERS = {
    "nn.Transformer": partial(adapted, "nn.Transformer", TorchTransformer),
    "x-transformers, rotary": partial(adapted, "x-transformers, rotary", XTransformers, rotary=True),
    "x-transformers, absolute": partial(adapted, "x-transformers, absolute", XTransformers, rotary=False),
}
