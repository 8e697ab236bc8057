"""Tokens added to a trained vocabulary, or to both."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer


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
