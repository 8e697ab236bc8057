"""The recurrent encoder: one state a source token, and the last of them, which is all a fixed context knows."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_utils import ModuleUtilsMixin
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from .dropout import Dropout
from .embeddings import TokenEmbedding
from .padding import mask_of_padding
from .recurrent_layers import RecurrentLayers


@dataclass
class RecurrentEncoderOutput(ModelOutput):
    """States (B, S, C), and each layer's last ones (B, L, C), with which the decoder begins.

    ``hidden_states`` are two, however many the layers: what the first one reads, and what the last one gives.
    """

    last_hidden_state: Tensor | None = None
    final_hidden: Tensor | None = None
    final_cell: Tensor | None = None  # of an LSTM
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: None = None


class RecurrentEncoder(ModuleUtilsMixin, nn.Module):
    """Source ids (B, S), or vectors (B, S, C), to states (B, S, C)."""

    main_input_name = "input_ids"

    def __init__(self, config: DragomanRecurrentConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embed_tokens: nn.Module = TokenEmbedding(config.source_vocab_size or config.vocab_size, size, scale=1.0)
        self.dropout = Dropout(config.dropout)
        self.layers = RecurrentLayers(
            config.cell, size, size, config.num_hidden_layers, config.bidirectional, config.dropout
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,  # generate() asks; there are none
        output_hidden_states: bool | None = None,
    ) -> RecurrentEncoderOutput:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("The encoder needs either input_ids or inputs_embeds.")
        if attention_mask is None and input_ids is not None:
            attention_mask = mask_of_padding(input_ids, self.config)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, S, C)
        x = self.dropout(x)
        if attention_mask is not None and attention_mask.shape[1] != x.shape[1]:
            raise ValueError(
                f"attention_mask has {attention_mask.shape[1]} columns, but there are {x.shape[1]} source tokens."
            )
        states, (hidden, cell) = self.layers(x, attention_mask)
        return RecurrentEncoderOutput(
            last_hidden_state=states,
            final_hidden=hidden,
            final_cell=cell,
            hidden_states=(x, states) if output_hidden_states else None,
        )
