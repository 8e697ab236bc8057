"""The files of a tokenizer before they are used: somebody else may have written them, or a copy was cut off."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# A file beside tokenizer_config.json and a class in it; or a note, which no repository can have as its name.
_REFERENCE = re.compile(r"\w+\.\w+|pip install [\w ;]+--no\.Code")


def check_folder(folder: Path, vocabularies: Iterable[str]) -> None:
    """Raises ValueError naming the file that is broken, or the field that makes no sense."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        try:
            fields = json.loads(config.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{config} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{config} must hold a JSON object, not a {type(fields).__name__}.")
        check_fields(fields, config)
    for name in vocabularies:
        if (folder / name).is_file():
            try:
                Tokenizer.from_file(str(folder / name))
            except Exception as error:  # the library raises no other type
                raise ValueError(f"{folder / name} is no vocabulary of the tokenizers library: {error}") from error


def check_fields(fields: Mapping[str, Any], where: Path) -> None:
    languages, longest = fields.get("languages", []), fields.get("model_max_length", 1)
    if not isinstance(languages, list) or not all(isinstance(language, str) for language in languages):
        raise ValueError(f"{where}: languages must be a list of names, got {languages!r:.60}.")
    if type(longest) not in (int, float) or not longest >= 1:
        raise ValueError(f"{where}: model_max_length must be a number of tokens, got {longest!r:.60}.")
    for name in ("split_special_tokens", "separate_vocabularies", "clean_up_tokenization_spaces"):
        if type(fields.get(name, False)) not in (bool, type(None)):
            raise ValueError(f"{where}: {name} must be true or false, got {fields[name]!r:.60}.")
    auto_map = fields.get("auto_map", {})
    entry = auto_map.get("AutoTokenizer", []) if isinstance(auto_map, dict) else auto_map
    for reference in entry if isinstance(entry, list) else [auto_map]:
        if reference is not None and not (isinstance(reference, str) and _REFERENCE.fullmatch(reference)):
            raise ValueError(
                f"{where}: auto_map points outside the folder, to {reference!r:.60}. Remove it: with dragoman imported "
                "it is not needed, and saving the tokenizer writes a right one."
            )
