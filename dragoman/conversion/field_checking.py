"""Our configuration of fields that another family brings: built, or all that is wrong with them."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError

from ..configuration.configuration_dragoman import DragomanConfig


def build_configuration(fields: dict[str, Any]) -> tuple[DragomanConfig | None, list[str]]:
    """The configuration, or none and all that is wrong: each value by itself, or how they fit together."""
    try:
        return DragomanConfig(**fields), []
    except (StrictDataclassError, ValueError) as error:
        whole = str(error.__cause__ or error)
    problems = []
    for name, value in fields.items():
        try:
            DragomanConfig(**{name: value})
        except StrictDataclassFieldValidationError as error:
            problems.append(str(error.__cause__))
        except (StrictDataclassError, ValueError):
            continue  # it may fit the others
    return None, problems or [whole]
