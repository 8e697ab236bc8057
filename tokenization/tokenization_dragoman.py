"""DragomanTokenizer: one vocabulary for both sides or one for each, trained from text, exactly reversible."""

import copy
import os
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer
from transformers import BatchEncoding

from .added_tokens import refuse_two_ids, verbatim, warn_of_unread
from .corpus_reading import FileNames, checked_texts, read_lines
from .language_tagging import LOCK, LanguageTagging
from .tokenizer_training import SPECIAL_TOKENS, language_tag, train_tokenizer

TARGET_TOKENIZER_FILE = "target_tokenizer.json"
VOCABULARY_FILES = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": TARGET_TOKENIZER_FILE}


class DragomanTokenizer(LanguageTagging):
    """Source `x … </s>`, labels `y … </s>`.

    `text_target` is read with the target vocabulary, and `decode` writes with it (`use_source_tokenizer=True`: with the
    source one); everything else refers to the source. Special tokens have the same ids in both. Text that spells a
    special token is plain text.

    With `languages`, each source row begins with the tag of the language wanted, `<2de> x … </s>`
    (Johnson et al., 2017, arXiv:1611.04558): `tokenizer(texts, target_language="de")`, a list for one language a row,
    or once for all with `tokenizer.target_language = "de"`.
    """

    vocab_files_names = VOCABULARY_FILES

    def __init__(
        self,
        *,
        target_tokenizer_object: Tokenizer | None = None,
        target_tokenizer_file: str | None = None,
        split_special_tokens: bool = True,
        separate_vocabularies: bool | None = None,  # as it was saved
        **kwargs: Any,
    ) -> None:
        if target_tokenizer_file is not None:
            target_tokenizer_object = Tokenizer.from_file(target_tokenizer_file)
        # The vocabulary of the side not in use; None: both sides use one.
        self._idle_tokenizer = copy.deepcopy(target_tokenizer_object)
        separate = self._idle_tokenizer is not None
        if separate_vocabularies not in (None, separate):
            state = "belongs to another tokenizer" if separate else "is missing, the vocabulary of the target side"
            raise ValueError(f"{TARGET_TOKENIZER_FILE} {state}: save the tokenizer again, or copy all of its files.")
        kwargs |= {"split_special_tokens": split_special_tokens, "separate_vocabularies": separate}
        super().__init__(**(SPECIAL_TOKENS | kwargs))

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Files are loaded whole: transformers would rebuild a class with an `__init__` from its vocabulary."""
        return kwargs

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        target_texts: Iterable[str] | None = None,
        *,
        vocab_size: int,
        target_vocab_size: int | None = None,
        algorithm: str = "bpe",
        target_algorithm: str | None = None,
        byte_fallback: bool = True,
        share_vocabulary: bool = True,
        languages: Sequence[str] = (),
    ) -> Self:
        """Learns one vocabulary from all texts, or with `share_vocabulary=False` one for each side.

        Algorithms: `bpe`, `unigram`, `char`, `word`. `vocab_size` counts special tokens, tags and the 256 bytes too.
        With bytes to fall back on, any text comes back exactly; without them the unknown becomes `<unk>`, and `word`
        reads symbols between white space (phonemes). Raises ValueError for sizes, names and texts that cannot work.
        """
        if isinstance(languages, str):
            raise TypeError(f"languages is the string {languages!r}; pass a sequence of names")
        recipe: dict[str, Any] = {"byte_fallback": byte_fallback, "languages": list(languages)}
        source: Iterable[str] = checked_texts(texts, "texts")
        target_tokenizer = None
        if share_vocabulary:
            if target_vocab_size is not None or target_algorithm is not None:
                raise ValueError("target_vocab_size and target_algorithm need share_vocabulary=False")
            if target_texts is not None:
                source = chain(source, checked_texts(target_texts, "target_texts"))
        elif target_texts is None:
            raise ValueError("share_vocabulary=False needs target_texts")
        tokenizer = train_tokenizer(source, vocab_size, algorithm, **recipe)
        if target_texts is not None and not share_vocabulary:
            target_tokenizer = train_tokenizer(
                checked_texts(target_texts, "target_texts"),
                vocab_size if target_vocab_size is None else target_vocab_size,
                algorithm if target_algorithm is None else target_algorithm,
                **recipe,
            )
        return cls(
            tokenizer_object=tokenizer,
            target_tokenizer_object=target_tokenizer,
            extra_special_tokens=[language_tag(language) for language in languages],
            languages=languages,
            training={"algorithm": algorithm, "byte_fallback": byte_fallback},
        )

    @classmethod
    def train_from_files(cls, files: FileNames, target_files: FileNames | None = None, **options: Any) -> Self:
        """`train` on UTF-8 files, a text a line. Raises ValueError naming an empty file or a line that is not UTF-8."""
        return cls.train(read_lines(files), None if target_files is None else read_lines(target_files), **options)

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str | list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: list[str] | None = None,
        special_tokens_map: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        if self._idle_tokenizer is not None or "training" not in self.init_kwargs:
            raise NotImplementedError("only a tokenizer trained with one vocabulary can be trained anew: use train")
        if new_special_tokens or special_tokens_map or kwargs:
            raise ValueError("special tokens and trainer options are fixed here: use train, then add_special_tokens")
        texts = (text for batch in text_iterator for text in ([batch] if isinstance(batch, str) else batch))
        made = {*SPECIAL_TOKENS.values(), *map(language_tag, self.languages)}
        kept = [token for token in self.added_tokens_decoder.values() if token.special and token.content not in made]
        size, recipe = vocab_size - len(kept), self.init_kwargs["training"]
        new = type(self).train(texts, vocab_size=size, languages=self.languages, **recipe)
        new.add_tokens(kept, special_tokens=True)
        new.add_special_tokens({**self.special_tokens_map, "extra_special_tokens": self.extra_special_tokens})
        for name in ("model_max_length", "padding_side", "truncation_side", "target_language", "split_special_tokens"):
            setattr(new, name, getattr(self, name))
        return new

    @property
    def separate_vocabularies(self) -> bool:
        return self._idle_tokenizer is not None

    @property
    def source_vocab_size(self) -> int:
        """Everything counted, added tokens too."""
        return self._vocabularies[0].get_vocab_size()

    @property
    def target_vocab_size(self) -> int:
        return self._vocabularies[1].get_vocab_size()

    @property
    def _vocabularies(self) -> tuple[Tokenizer, Tokenizer]:
        """Source and target, whichever is in use."""
        with LOCK:
            idle = self._tokenizer if self._idle_tokenizer is None else self._idle_tokenizer
            return (idle, self._tokenizer) if self._in_target_mode else (self._tokenizer, idle)

    def _switch_to_target_mode(self) -> None:
        if not self._in_target_mode:
            self._switch_mode()

    def _switch_to_input_mode(self) -> None:
        if self._in_target_mode:
            self._switch_mode()

    def _switch_mode(self) -> None:
        self._in_target_mode = not self._in_target_mode
        if self._idle_tokenizer is not None:
            self._tokenizer, self._idle_tokenizer = self._idle_tokenizer, self._tokenizer

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # type: ignore[override]
        with LOCK:
            try:
                return super()._encode_plus(text, text_pair, **kwargs)
            except BaseException:
                self._switch_to_input_mode()  # __call__ does so only when all went well
                raise

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        use_source_tokenizer: bool = False,
        **kwargs: Any,
    ) -> str:
        """Stretches of text between added tokens are decoded apart: each was encoded with its own leading space."""
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        source, target = self._vocabularies
        backend = source if use_source_tokenizer else target
        added = backend.get_added_tokens_decoder()
        added.pop(self.unk_token_id, None)  # stands within text
        stretches: list[str] = []
        for is_added, run in groupby(ids, added.__contains__):
            if is_added:
                stretches += [added[i].content for i in run if not (skip_special_tokens and added[i].special)]
            else:
                stretches.append(backend.decode(list(run), skip_special_tokens=skip_special_tokens))
        text = (" " if backend.decoder is None else "").join(filter(None, stretches))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def add_special_tokens(self, special_tokens_dict: dict[str, Any], replace_extra_special_tokens: bool = True) -> int:
        """Adds to both vocabularies. Another end token ends every row from here on.

        Raises:
            ValueError: for a token that would get two different ids, before anything has changed.
        """
        for tokens in special_tokens_dict.values():
            tokens = tokens if isinstance(tokens, list | tuple) else [tokens]
            refuse_two_ids([verbatim(token, special=True) for token in tokens], self._backends)
        added = super().add_special_tokens(special_tokens_dict, replace_extra_special_tokens)
        self._renew_end()
        return added

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Adds to both vocabularies. Raises ValueError for a special token that would get two different ids."""
        tokens = [verbatim(token, special_tokens) for token in new_tokens]
        refuse_two_ids(tokens, self._backends)
        warn_of_unread(tokens, self)
        added = [backend.add_tokens(tokens) for backend in self._backends]
        return added[0]

    @property
    def _backends(self) -> list[Tokenizer]:
        """The vocabulary in use first, then the other, if there is one."""
        return [backend for backend in (self._tokenizer, self._idle_tokenizer) if backend is not None]

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        with LOCK:
            self._switch_to_input_mode()
            self._renew_end()
            for backend in self._vocabularies:  # files must not depend on the last call
                backend.no_truncation()
                backend.no_padding()
            names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
            path = Path(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + TARGET_TOKENIZER_FILE)
            if self._idle_tokenizer is None:
                path.unlink(missing_ok=True)  # else another tokenizer's would be loaded
                return names
            self._idle_tokenizer.save(str(path))
            return (*names, str(path))
