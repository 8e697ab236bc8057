"""Growing and shrinking vocabularies, where source and target may have one each."""

from typing import Any

from torch import nn


class VocabularyResizingMixin:
    """``resize_token_embeddings`` for one vocabulary, shared by the embeddings or not; one method a side for two."""

    config: Any

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize both sides and the head to one size.

        Raises:
            ValueError: with two vocabularies, whose sizes have nothing to do with each other.
        """
        if self._has_two_vocabularies:
            raise ValueError(
                f"This model has two vocabularies (source {self.config.source_vocab_size}, target "
                f"{self.config.vocab_size}): call resize_source_embeddings or resize_target_embeddings."
            )
        decoder = getattr(self.base_model, "decoder", None)  # type: ignore[attr-defined]
        if decoder is not None and not self.config.share_embeddings:
            self._resize(decoder.embed_tokens, new_num_tokens, pad_to_multiple_of, mean_resizing)
        resized = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)  # type: ignore[misc]
        if decoder is not None:
            decoder.embed_tokens.num_embeddings = len(decoder.embed_tokens.weight)  # a tied one got its rows by tying
        if self.config.source_vocab_size is not None:
            self.config.source_vocab_size = self.config.vocab_size
        return resized

    def resize_source_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        embeddings = self.base_model.encoder.embed_tokens  # type: ignore[attr-defined]
        self._one_side_only()
        self._resize(embeddings, new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.source_vocab_size = embeddings.num_embeddings
        return embeddings

    def resize_target_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the decoder's input embeddings and the head."""
        if not hasattr(self.base_model, "decoder"):  # type: ignore[attr-defined]
            raise ValueError(f"{type(self).__name__} has no decoder: call resize_source_embeddings().")
        embeddings = self.base_model.decoder.embed_tokens  # type: ignore[attr-defined]
        self._one_side_only()
        self._resize(embeddings, new_num_tokens, pad_to_multiple_of, mean_resizing)
        head = self.get_output_embeddings()  # type: ignore[attr-defined]
        if head is not None:
            size = embeddings.num_embeddings
            resized = self._get_resized_lm_head(head, size, mean_resizing=mean_resizing)  # type: ignore[attr-defined]
            self.set_output_embeddings(resized)  # type: ignore[attr-defined]
        self.config.vocab_size = embeddings.num_embeddings
        self.tie_weights()  # type: ignore[attr-defined]
        return embeddings

    @property
    def _has_two_vocabularies(self) -> bool:
        return self.config.source_vocab_size is not None and not self.config.share_embeddings

    def _one_side_only(self) -> None:
        if not self._has_two_vocabularies:
            raise ValueError("This model has one vocabulary for both sides: call resize_token_embeddings.")

    def _resize(self, embeddings: nn.Embedding, *arguments: Any) -> None:
        # Private in transformers, which offers nothing for a second vocabulary; it changes the weight in place.
        self._get_resized_embeddings(embeddings, *arguments)  # type: ignore[attr-defined]
