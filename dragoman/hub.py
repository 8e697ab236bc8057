"""One folder that anyone can load: code beside every checkpoint, written when it is saved.

``import dragoman`` sets ``export_code`` on the travelling classes, whose ``save_pretrained`` calls it; running as code
from a folder they have none, and transformers copies the files on. With ``DRAGOMAN_EXPORT_CODE=0`` in the environment
no code is written, and ``auto_map`` holds a note instead: such a folder loads with the plugin only.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .configuration.configuration_dragoman import DragomanConfig
from .configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from .flattening import HEADER, entry_modules, flat_copies
from .modeling.checkpoint_saving import STAGE
from .tokenization.tokenization_dragoman import DragomanTokenizer

SETTING = "DRAGOMAN_EXPORT_CODE"
# Stands where transformers looks for the repository of the code. Its errors show it; it is no name that a repository
# can have. Without it, AutoTokenizer would quietly take a class of its own that knows neither languages nor targets.
NOTE = "pip install dragoman; import dragoman; leave trust_remote_code out"
# The files that transformers reads an auto_map from; the field that tells whose file it is; the classes by its value.
OWNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "config.json": ("model_type", {kind.model_type: kind for kind in (DragomanConfig, DragomanRecurrentConfig)}),
    "tokenizer_config.json": ("tokenizer_class", {DragomanTokenizer.__name__: DragomanTokenizer}),
}


def install() -> None:
    """From now on, what is saved can be loaded without the plugin."""
    for _, classes in OWNERS.values():
        for travelling in classes.values():
            travelling.export_code = export_code


def is_enabled() -> bool:
    """Raises ValueError for a setting that is neither 0 nor 1."""
    value = os.environ.get(SETTING, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{SETTING}={value!r} in the environment must be 1 (code beside checkpoints) or 0 (none).")
    return value == "1"


def export_code(saved: Any, folder: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """Write the code that ``saved`` needs, unless the setting asks for none; return its ``auto_map``.

    None is for a class derived from ours, whose code is not here: transformers saves it as any other. The other files
    in the folder keep the code that they need, of this version too; copies that nothing needs go.

    Raises:
        FileExistsError: where a file of that name is not such a copy; it stays as it is.
    """
    if not any(type(saved) in classes.values() for _, classes in OWNERS.values()):
        return None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    enabled = is_enabled()
    needed = dict(flat_copies(entry_modules(saved.entry_points))) if enabled else {}
    own = "config.json" if isinstance(saved, PreTrainedConfig) else "tokenizer_config.json"
    for name in OWNERS.keys() - {own}:  # the other one
        owner, fields = owner_of(folder / name)
        if owner is not None and relies_on_code(fields):
            needed |= flat_copies(entry_modules(owner.entry_points))
    for name in needed:
        if (folder / name).exists() and not is_copy(folder / name):
            there = Path(*(part for part in folder.parts if not part.startswith(STAGE)), name)
            raise FileExistsError(
                f"{there} is not a copy that dragoman wrote, and saving would replace it: save into another "
                f"folder, rename the file, or set {SETTING}=0 to save without code."
            )
    for name, text in needed.items():
        partial = folder / f"_{name}.partial"  # Trainer pushes a folder that is written to, but no file named like this
        partial.write_text(text, "utf-8", newline="\n")
        partial.replace(folder / name)
    for path in folder.glob("*.py"):
        if path.name not in needed and is_copy(path):
            path.unlink()
    return saved.entry_points if enabled else notes(saved.entry_points)


def notes(entry_points: Mapping[str, Any]) -> dict[str, Any]:
    """An ``auto_map`` for a folder without code."""
    note = f"{NOTE}--no.Code"
    return {auto: note if isinstance(reference, str) else [note, None] for auto, reference in entry_points.items()}


def relies_on_code(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a metadata file ask for code."""
    return "auto_map" in fields and NOTE not in str(fields["auto_map"])


def owner_of(file: Path) -> tuple[Any, dict[str, Any]]:
    """Which travelling class a metadata file belongs to (None: no such file, or somebody else's), and its fields."""
    key, classes = OWNERS[file.name]
    try:
        fields = json.loads(file.read_text("utf-8"))
        return classes.get(fields[key]), fields
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # saving mends it; loading reports it
        return None, {}


def is_copy(path: Path) -> bool:
    """Whether a file says that dragoman wrote it."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER.encode()
