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


def is_other(config: DragomanConfig, name: str, value: Any) -> bool:
    """Whether a field means something else than ``value``: it may spell out what None stands for."""
    found = getattr(config, name)
    if value is not None or found is None:
        return bool(found != value)
    heads = (config.encoder_num_attention_heads, config.decoder_num_attention_heads)
    implied: dict[str, list[Any]] = {
        "source_vocab_size": [config.vocab_size],
        "head_dim": [config.hidden_size / number for number in heads],
        "attention_scale": [config.head_dim_of(number) ** -0.5 for number in heads],
    }
    return any(found != meant for meant in implied.get(name, [None]))
