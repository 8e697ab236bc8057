"""Which families there are."""

from .families import ConversionError, Family
from .marian import Marian

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Marian(),)}
REFUSED: dict[str, str] = {"dragoman": "it is Dragoman's own"}


def family_of(model_type: str) -> Family:
    """Raises ConversionError for a ``model_type`` that is not known, or known not to fit."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED.get(model_type, f"known are {', '.join(sorted(FAMILIES))}")
    raise ConversionError(model_type, [f"model_type {model_type!r}: {reason}"])
