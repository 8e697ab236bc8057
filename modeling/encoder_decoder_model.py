"""What transformers needs to know of every model here, Transformer or recurrent."""

from typing import Any

import torch
from torch import nn

from .checkpoint_loading import CheckpointLoading
from .checkpoint_saving import CheckpointSaving
from .embeddings import TokenEmbedding
from .initialization import initialize
from .vocabulary_resizing import VocabularyResizingMixin


class EncoderDecoderPreTrainedModel(VocabularyResizingMixin, CheckpointSaving, CheckpointLoading):
    """An encoder and a decoder with token vectors each, tied or not, in the base model."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize(module, self.config)

    def get_input_embeddings(self) -> nn.Module:
        base: Any = self.base_model
        return base.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """For the encoder, and for all that is tied to it. Vectors of a plain ``nn.Embedding`` are scaled as before."""
        base: Any = self.base_model
        own = base.encoder.embed_tokens
        if value is own:  # resizing changes the weight in place
            return
        if type(value) is nn.Embedding and isinstance(own, TokenEmbedding):
            value = own.with_vectors_of(value)
        base.encoder.embed_tokens = value
        self.tie_weights()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Which parameter is which other one, ``{name: name of the owner}``."""
        # transformers' own turns every tie off with tie_word_embeddings; share_embeddings is a tie of its own here.
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        return dict(self._tied_weights_keys or {})
