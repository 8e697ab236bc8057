"""The files of a checkpoint before they are opened: whole, of the right kind, and inside their folder."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

LARGEST_HEADER = 100_000_000  # bytes, that of the safetensors format


def check_files(folder: Path, variant: str | None = None) -> None:
    """Look at what transformers would read from a folder.

    Raises:
        OSError: for a file that is missing, cut off or no safetensors.
        ValueError: for an index or a generation configuration that makes no sense.
    """
    middle = "" if variant is None else f".{variant}"
    weights, index = folder / f"model{middle}.safetensors", folder / f"model.safetensors.index{middle}.json"
    if weights.is_file():
        check_safetensors(weights)
    elif index.is_file():
        for name in shard_names(index):
            check_safetensors(folder / name)
    if (folder / "generation_config.json").is_file():
        try:
            GenerationConfig.from_pretrained(folder)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder / 'generation_config.json'} is broken: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises ValueError naming the file."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, not a {type(content).__name__}.")
    return content


def shard_names(index: Path) -> list[str]:
    """The files that an index names, each once. Raises ValueError for names that lead elsewhere."""
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(content.get("metadata"), dict) or not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} must hold metadata and a weight_map of weights to files.")
    names = list(dict.fromkeys(str(name) for name in weight_map.values()))
    for name in names:
        if not name.endswith(".safetensors") or any(mark in name for mark in ("/", "\\", ":")):
            raise ValueError(f"{index} names {name!r:.80}, which is not a safetensors file beside it.")
    return names


def check_safetensors(file: Path) -> None:
    """Raises OSError unless the file is as long as its header says. Reads the header only."""
    if not file.is_file():
        raise OSError(f"{file} is missing.")
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise OSError(f"{file} is cut off, or is no safetensors file.")
        try:
            header = json.loads(content.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise OSError(f"{file} is no safetensors file: its header cannot be read ({error!r}).") from error
    if size != expected:
        raise OSError(f"{file} has {size} bytes where its header says {expected}: copy or download it again.")
