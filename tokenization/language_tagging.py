"""Asking for a target language: one tag at the front of each source row (Johnson et al., 2017, arXiv:1611.04558)."""

import functools
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils.generic import PaddingStrategy

from .code_sharing import CodeSharing
from .tokenizer_training import language_tag, renew_end, sequence_template

ENCODING_OPTIONS = ("token_type_ids", "attention_mask", "special_tokens_mask", "offsets_mapping", "length")

# A tokenizer has one template, and one side in use, for all threads. One lock for all: with its own, none could be
# pickled; and whoever forks waits, so that no child begins with a tokenizer in the midst of a call.
LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class LanguageTagging(CodeSharing):
    """Source rows `<2de> x … </s>` where `languages` are known, else `x … </s>`; targets never carry a tag."""

    _tokenizer: Tokenizer
    _idle_tokenizer: Tokenizer | None
    _in_target_mode: bool
    _end: str | None  # that rows are known to end with

    def __init__(self, *, languages: Sequence[str] = (), target_language: str | None = None, **kwargs: Any) -> None:
        self.languages = list(languages)
        self._target_language: str | None = None
        self._in_target_mode, self._end = False, None
        kwargs.setdefault("add_eos_token", True)
        super().__init__(languages=self.languages, target_language=target_language, **kwargs)  # both are saved
        for language in self.languages:
            self._tag(language)
        self.target_language = target_language
        if self.eos_token is not None and self._tokenizer.token_to_id(self.eos_token) is not None:
            self._renew_end()  # now: else the first call would change what datasets knows the tokenizer by

    @property
    def target_language(self) -> str | None:
        """The language asked for when a call names none."""
        return self._target_language

    @target_language.setter
    def target_language(self, language: str | None) -> None:
        if language is not None:
            self._tag(language)
        self._target_language = language

    def update_post_processor(self) -> None:
        # transformers' hook, which would make a template of its own: without the end token, and without tags.
        if self.add_bos_token:
            self._add_bos_token = False
            raise ValueError(
                "add_bos_token=True is not for this tokenizer: a source has no start token, and the decoder's is put "
                "before the labels by the model and the collator (config.decoder_start_token_id)."
            )
        if not self.add_eos_token:
            self._add_eos_token = True
            raise ValueError(
                "add_eos_token=False is not for this tokenizer, whose models know by the end token where a row ends: "
                "for one without it call with add_special_tokens=False."
            )
        self._renew_end()

    def _renew_end(self) -> None:
        """Of all rows to come, where the end token is another one than before."""
        if self.eos_token not in (None, self._end):
            if self._tokenizer.token_to_id(self.eos_token) is None:
                raise ValueError(
                    f"eos_token={self.eos_token!r} is not in the vocabulary: add_special_tokens({{'eos_token': ...}}) "
                    "puts it there."
                )
            for backend in filter(None, (self._tokenizer, self._idle_tokenizer)):
                renew_end(backend, (self.eos_token, self.eos_token_id))
            self._end = self.eos_token

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        has_tag = bool(self.languages) and not self._in_target_mode
        return super().num_special_tokens_to_add(pair) + has_tag

    def _tag(self, language: str) -> tuple[str, int]:
        tag = language_tag(language)
        index = self._tokenizer.token_to_id(tag)
        if language not in self.languages:
            raise ValueError(f"unknown language {language!r}; known: {', '.join(self.languages) or 'none'}")
        if index is None:
            raise ValueError(
                f"language {language!r} has no tag {tag} in the vocabulary: were these files saved together?"
            )
        return tag, index

    def _tags(self, languages: str | Sequence[str] | None, rows: int | None) -> list[tuple[str, int]]:
        """A tag for each of `rows` texts (None: a single text, not a batch), or no tags at all."""
        languages = self.target_language if languages is None else languages
        if languages is None:
            if not self.languages:
                return []
            raise ValueError(
                "which language? Pass target_language=... (to a pipeline tgt_lang=..., to a command --tgt-lang) or set "
                f"tokenizer.target_language (known: {', '.join(self.languages)})"
            )
        if isinstance(languages, str):
            return [self._tag(languages)] * (1 if rows is None else rows)
        if len(languages) != rows:
            texts = "a single text" if rows is None else f"{rows} texts"
            raise ValueError(f"target_language names {len(languages)} languages for {texts}")
        return [self._tag(language) for language in languages]

    @functools.wraps(PreTrainedTokenizerBase.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        with LOCK:
            return super().__call__(*args, **kwargs)

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, *, target_language: str | Sequence[str] | None = None, **kwargs: Any
    ) -> BatchEncoding:
        self._renew_end()
        if self._in_target_mode or not kwargs.get("add_special_tokens", True):
            return super()._encode_plus(text, text_pair, **kwargs)
        is_batch = isinstance(text, list | tuple)
        if is_batch and kwargs.get("is_split_into_words"):
            is_batch = len(text) > 0 and isinstance(text[0], list | tuple)
        tags = self._tags(target_language, len(text) if is_batch else None)
        if len(set(tags)) > 1:
            return self._encode_rows(text, text_pair, tags, **kwargs)
        with self._tagged(*tags[:1]):
            return super()._encode_plus(text, text_pair, **kwargs)

    @contextmanager
    def _tagged(self, tag: tuple[str, int] | None = None) -> Iterator[None]:
        plain = self._tokenizer.post_processor
        if tag is not None:
            self._tokenizer.post_processor = sequence_template((self.eos_token, self.eos_token_id), tag)
        try:
            yield
        finally:
            self._tokenizer.post_processor = plain

    def _encode_rows(
        self,
        text: Sequence[Any],
        text_pair: Sequence[Any] | None,
        tags: Sequence[tuple[str, int]],
        *,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Rows that ask for different languages: each is encoded with its tag, then all are padded."""
        encodings: list[tuple[int, Encoding]] = []
        for tag in dict.fromkeys(tags):
            rows = [row for row, own in enumerate(tags) if own == tag]
            pairs = None if text_pair is None else [text_pair[row] for row in rows]
            with self._tagged(tag):
                part = super()._encode_plus([text[row] for row in rows], pairs, max_length=max_length, **kwargs)
            samples = part.get("overflow_to_sample_mapping", range(len(rows)))
            encodings += [
                (rows[sample], encoding) for sample, encoding in zip(samples, part.encodings or (), strict=True)
            ]
        encodings.sort(key=lambda item: item[0])

        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            length = max(len(encoding) for _, encoding in encodings)
            if padding_strategy == PaddingStrategy.MAX_LENGTH and max_length is not None:
                length = max_length
            length += -length % (pad_to_multiple_of or 1)
            side = self.padding_side if padding_side is None else padding_side
            for _, encoding in encodings:
                encoding.pad(length, direction=side, pad_id=self.pad_token_id, pad_token=self.pad_token)

        wanted: dict[str, Any] = {f"return_{name}": kwargs.get(f"return_{name}") for name in ENCODING_OPTIONS}
        columns: dict[str, list[Any]] = defaultdict(list)
        for row, encoding in encodings:
            for name, values in self._convert_encoding(encoding, **wanted)[0].items():
                columns[name] += values
            if kwargs.get("return_overflowing_tokens"):
                columns["overflow_to_sample_mapping"].append(row)
        return BatchEncoding(dict(columns), [encoding for _, encoding in encodings], tensor_type=return_tensors)
