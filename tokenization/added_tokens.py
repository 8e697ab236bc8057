"""Tokens added to a trained vocabulary, or to both."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)


def verbatim(token: str | AddedToken, special: bool) -> AddedToken:
    """An added token is looked for in the text as it stands, before a space is put in front."""
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=False)
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=special or token.special,
    )


def refuse_two_ids(tokens: Sequence[AddedToken], backends: Sequence[Tokenizer]) -> None:
    """Raises ValueError for a special token that would not get the same id in all vocabularies."""
    for token in tokens:
        ids = {backend.token_to_id(token.content) for backend in backends}
        if ids == {None}:
            ids = {backend.get_vocab_size() for backend in backends}
        if token.special and len(ids) > 1:
            raise ValueError(
                f"special token {token.content!r} would have ids {sorted(map(str, ids))} in the two vocabularies; "
                "make them of one size, or share one vocabulary"
            )


def warn_of_unread(tokens: Sequence[AddedToken], tokenizer: PreTrainedTokenizerBase) -> None:
    """Before special tokens are new that a script may expect to be found in its texts."""
    roles = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    new = [t.content for t in tokens if t.special and t.content not in (*roles, *tokenizer.get_vocab())]
    if new and tokenizer.split_special_tokens:
        logger.warning(
            f"{', '.join(new)}: special tokens are not looked for in texts, where they are spelt as other characters "
            "are. For those that you write into texts yourself set tokenizer.split_special_tokens = False."
        )
