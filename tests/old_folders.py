"""Checkpoint folders as they were written once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def rewrite(
    folder: Path, tensors: Mapping[str, Tensor] | None = None, remove: tuple[str, ...] = (), **fields: Any
) -> None:
    """Add and remove tensors and fields of config.json (those of None), and drop generation_config.json."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    stored = {**load_file(folder / "model.safetensors"), **(tensors or {})}
    kept = {name: tensor.detach().clone() for name, tensor in stored.items() if name not in remove}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
