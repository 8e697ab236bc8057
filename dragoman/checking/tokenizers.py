"""The least that the collators of transformers ask of a tokenizer: to pad ids."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from .subjects import Subject


class PaddingTokenizer(PreTrainedTokenizerFast):
    """Knows one token, the padding, at the id that the model has for it."""

    @classmethod
    def of(cls, subject: Subject) -> "PaddingTokenizer":
        words = WordLevel({"<pad>": subject.pad}, unk_token="<pad>")
        return cls(tokenizer_object=Tokenizer(words), pad_token="<pad>")
