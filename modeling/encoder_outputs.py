"""What a caller knows of the source, as the class that a model here has for it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from transformers.utils.generic import ModelOutput

Output = TypeVar("Output", bound=ModelOutput)


def as_encoder_output(kind: type[Output], given: Any) -> Output:
    """``given`` is of that class, of another (by the names they share), a mapping, or a tuple in the class's order.

    A tuple of :class:`ModelOutput` has no place for what is None, such as the cells of a GRU.
    """
    if isinstance(given, kind):
        return given
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if isinstance(given, Mapping):
        return kind(**{name: given.get(name) for name in names})
    values = list(given)
    if "final_cell" in names and len(values) > 2 and isinstance(values[2], tuple):  # hidden_states
        values.insert(2, None)
    return kind(*values)
