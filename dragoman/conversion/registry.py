"""Which families there are."""

from collections.abc import Iterable

from ..configuration.configuration_dragoman import DragomanConfig
from ..modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from .bart import Bart
from .blenderbot import Blenderbot
from .blenderbot_small import BlenderbotSmall
from .families import ConversionError, Family
from .fsmt import FSMT
from .m2m_100 import M2M100
from .marian import Marian
from .mbart import MBart
from .pegasus import Pegasus
from .t5 import MT5, T5, UMT5

WRITER = DragomanForConditionalGeneration.__name__
OTHER_HEADS = ("DragomanModel", "DragomanEncoderModel", "DragomanForSequenceClassification")
_FAIRSEQ = (Bart(), Blenderbot(), BlenderbotSmall(), FSMT(), M2M100(), Marian(), MBart(), Pegasus())
_ALL = (*_FAIRSEQ, MT5(), T5(), UMT5())
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}
REFUSED: dict[str, str] = {
    "dragoman": "it is Dragoman's own",
    "nllb-moe": "its feed-forward layers are mixtures of experts, which Dragoman lacks; NLLB's dense models fit",
    "t5gemma": (
        "it needs what no other family here has: norms behind each sublayer as well as before it, whose weights count "
        "from 1, scores and logits capped by tanh, sliding windows, and sizes of its own for each side"
    ),
    "t5gemma2": (
        "it needs what no other family here has: self- and cross-attention in one softmax, norms of queries and keys "
        "and behind each sublayer, whose weights count from 1, sliding windows, and images"
    ),
}


def family_of(model_type: str) -> Family:
    """Raises ConversionError for a ``model_type`` that is not known, or known not to fit."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED.get(model_type, f"known are {', '.join(sorted(FAMILIES))}")
    raise ConversionError(model_type, [f"model_type {model_type!r}: {reason}"])


def refuse_other_heads(architectures: Iterable[str]) -> None:
    """Raises ConversionError for a class of ours that writes no text."""
    for name in architectures:
        if name in OTHER_HEADS:
            raise ConversionError(DragomanConfig.model_type, [f"it is a {name}; only {WRITER} is converted"])
