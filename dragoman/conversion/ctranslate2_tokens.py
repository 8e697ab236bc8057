"""The tokens of a CTranslate2 model: which ids Dragoman gives them, and a tokenizer where they say how text is cut.

The engine takes tokens, not text. Where every token is one character, text is cut into characters; otherwise tokens
stand between white space, as in the files that the engine's own commands read. There is no tokenizer where tokens hold
white space, which leaves no way to tell, or where a side lacks a special token. A folder that ``write_ctranslate2``
wrote carries its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.utils import logging

from ..tokenization.tokenization_dragoman import DragomanTokenizer
from .ctranslate2_files import EngineModel, read_json

logger = logging.get_logger(__name__)

PADDING = ("<pad>", "<blank>", "[PAD]")  # the engine needs none: by name


@dataclass(frozen=True)
class TokenOrder:
    """Tokens of both sides in the order of their ids here, and the engine's row of each."""

    source: list[str]
    target: list[str]
    source_rows: list[int]
    target_rows: list[int]
    special: dict[str, str | None]  # pad_token, bos_token, eos_token, unk_token

    def id(self, name: str) -> int | None:
        token = self.special[name]
        return None if token is None else self.target.index(token)


def order_tokens(engine: EngineModel) -> TokenOrder:
    """Ids as they are, where special tokens have the same on both sides; else those come first on both.

    Raises ValueError for tokens that are missing.
    """
    source, target, settings = engine.source_tokens, engine.target_tokens, engine.settings
    special: dict[str, str | None] = {
        "pad_token": next((token for token in PADDING if token in source and token in target), None),
        "bos_token": settings.get("bos_token") or "<s>",
        "eos_token": settings.get("eos_token") or "</s>",
        "unk_token": settings.get("unk_token") or "<unk>",
    }
    if special["bos_token"] not in target:
        special["bos_token"] = None
    if special["pad_token"] is None:
        raise ValueError(
            f"Dragoman needs a token for padding, and none of {', '.join(PADDING)} is in both vocabularies."
        )
    if special["eos_token"] not in target:
        raise ValueError(f"The end of a sequence, {special['eos_token']!r:.60}, is not in the target vocabulary.")
    tokens = [token for token in special.values() if token is not None]
    in_both = [token for token in dict.fromkeys(tokens) if token in source and token in target]
    if all(source.index(token) == target.index(token) for token in in_both):
        sides = [source, target]
    else:
        sides = [[*in_both, *(token for token in side if token not in in_both)] for side in (source, target)]
    rows = [
        [places[token] for token in side] for side, places in zip(sides, map(_places, (source, target)), strict=True)
    ]
    return TokenOrder(sides[0], sides[1], rows[0], rows[1], special)


def _places(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def read_tokenizer(folder: Path, engine: EngineModel, order: TokenOrder) -> Any:
    """The folder's own tokenizer if it has these tokens, or one made of them, or None."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        ours = read_json(config, dict).get("tokenizer_class") == "DragomanTokenizer"
        loader: Any = DragomanTokenizer if ours else AutoTokenizer
        tokenizer = loader.from_pretrained(str(folder), trust_remote_code=False)
        found = zip(tokens_of(tokenizer), (order.source, order.target), strict=True)
        if all(tokens == expected[: len(tokens)] for tokens, expected in found):
            return tokenizer
        logger.warning(f"The tokenizer in {folder} has other tokens than the model there: it is not used.")
    sides = (order.source, order.target)
    special = {token for token in order.special.values() if token is not None}
    if not all(_can_cut(side, order) and special <= set(side) for side in sides):
        return None
    settings, end = engine.settings, [order.special["eos_token"]]
    before = [order.special["bos_token"]] if settings.get("add_source_bos") else []
    behind = end if settings.get("add_source_eos") else []
    source, target = _tokenizer(order.source, order, before, behind), _tokenizer(order.target, order, [], end)
    shared = source.to_str() == target.to_str()
    names: dict[str, Any] = {**order.special}
    return DragomanTokenizer(tokenizer_object=source, target_tokenizer_object=None if shared else target, **names)


def tokens_of(tokenizer: Any) -> list[list[str]]:
    """Source and target tokens in the order of their ids; ids without a token get a name.

    Raises:
        ValueError: for a tokenizer of two vocabularies that is not Dragoman's: it tells one of them only.
    """
    backends = getattr(tokenizer, "_vocabularies", None)  # of a DragomanTokenizer: one a side
    if backends is None:
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        if any(i < len(tokens) and tokens[i] != token for token, i in tokenizer.get_vocab().items()):
            raise ValueError(
                f"its {type(tokenizer).__name__} reads ids by one vocabulary and writes them by another, which only a "
                "DragomanTokenizer tells apart: train one, or convert a model with one vocabulary"
            )
        sides = [tokens] * 2
    else:
        sides = [[backend.id_to_token(i) for i in range(backend.get_vocab_size())] for backend in backends]
    return [[f"<unused{i}>" if token is None else token for i, token in enumerate(side)] for side in sides]


def _are_characters(tokens: list[str], order: TokenOrder) -> bool:
    return all(len(token) == 1 or token in order.special.values() for token in tokens)


def _can_cut(tokens: list[str], order: TokenOrder) -> bool:
    return _are_characters(tokens, order) or not any(any(map(str.isspace, token)) for token in tokens)


def _tokenizer(tokens: list[str], order: TokenOrder, before: list[str | None], behind: list[str | None]) -> Tokenizer:
    special = [token for token in dict.fromkeys(order.special.values()) if token is not None and token in tokens]
    tokenizer = Tokenizer(models.WordLevel(_places(tokens), order.special["unk_token"]))
    if _are_characters(tokens, order):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    parts = [*before, "$A", *behind]
    named = [(token, tokens.index(token)) for token in {*before, *behind} if token is not None]
    tokenizer.post_processor = processors.TemplateProcessing(single=parts, pair=[*parts, "$B"], special_tokens=named)
    return tokenizer
