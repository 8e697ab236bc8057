"""What a decoder reads when it is to write a given text."""

from typing import Any

from torch import Tensor


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """``labels`` (B, T) moved one place later, behind the start token; -100 becomes padding.

    Raises ValueError for a model that neither does so itself, as M2M100 does not, nor says what it starts with.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    places = (model.config, model.generation_config)
    start, pad = (
        next((found for place in places if (found := getattr(place, name, None)) is not None), None)
        for name in ("decoder_start_token_id", "pad_token_id")
    )
    if start is None or pad is None:
        raise ValueError(
            f"{type(model).__name__} has decoder_start_token_id={start} and pad_token_id={pad}: set both in its "
            "configuration, to the tokens it was trained with."
        )
    moved = labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == -100, pad)
    moved[:, 0] = start
    return moved
