"""Is a folder what this version of dragoman would have written? For who has to load it without trusting who sent it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from .configuration.base_configuration import VERSION
from .flattening import HEADER, entry_modules, flat_copies
from .hub import OWNERS, notes, owner_of, relies_on_code
from .modeling.checkpoint_files import check_safetensors, read_object, shard_names
from .modeling.checkpoint_saving import STAGE
from .tokenization.tokenizer_files import check_fields

# Data that no loader executes. Whatever else lies in a folder is refused, known to be harmful or not.
_DATA = {
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "target_tokenizer.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Of tokenizers of the families that are converted, which stay with the model: vocabularies, no more code than ours.
_THEIR_DATA = {
    *("vocab.json", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "added_tokens.json"),
    *("merges.txt", "source.spm", "target.spm", "spiece.model", "sentencepiece.bpe.model"),
}
_THEIRS = {
    *("PreTrainedTokenizerFast", "TokenizersBackend", *filter(None, TOKENIZER_MAPPING_NAMES.values())),
    *("M2M100Tokenizer", "MarianTokenizer"),  # which the mapping has only where sentencepiece is installed
}
_REPORTS = re.compile(r"(all|train|eval|predict|test)_results\.json|trainer_state\.json")
_TEXTS = {"README.md", "LICENSE", ".gitattributes"}
_WEIGHTS = re.compile(r"model(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors")
_INDEX = re.compile(r"model\.safetensors\.index(\.\w+)?\.json")
_DOWNLOADS = re.compile(  # of `hf download`
    r"\.cache/huggingface/(\.gitignore|CACHEDIR\.TAG|download/[^/]+\.(metadata|lock)|trees/[0-9a-f]{40}\.json)"
)
_PICKLES = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}


@dataclass(frozen=True)
class Finding:
    """What was found at one path of a folder; ``problem`` is None where all is well."""

    path: str
    kind: str
    problem: str | None = None


def verify(folder: str | Path) -> list[Finding]:
    """Look at every file, opening none in a way that could run it.

    Code must be byte for byte what this version writes for this folder's configuration and tokenizer, and all of it;
    each ``auto_map`` must name that code. Pickles, symbolic links and unknown files are refused. The tokenizer of a
    converted model may be one of transformers', which brings no code.

    Raises:
        NotADirectoryError: for a path that is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder.")
    expected, findings = _expected_code(root)
    known = _DATA | _THEIR_DATA if _has_their_tokenizer(root) else _DATA
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            expected.pop(name, None)
            findings.append(Finding(name, "link", "a symbolic link, which may lead anywhere: copy the file itself"))
        elif path.is_file():
            findings.append(_look(path, name, expected.pop(name, None), known))
        elif not path.is_dir():
            findings.append(Finding(name, "unknown", "not a regular file"))
    findings += [Finding(name, "code", "missing, and auto_map needs it: save again") for name in expected]
    return findings


def _expected_code(root: Path) -> tuple[dict[str, str], list[Finding]]:
    """The code that the folder's two ``auto_map`` rely on, and what is wrong with the files that hold them."""
    expected: dict[str, str] = {}
    findings = []
    if not any((root / name).is_file() for name in OWNERS):
        findings.append(Finding(".", "unknown", f"no {' and no '.join(OWNERS)}: nothing that dragoman saved"))
    for name, (key, classes) in OWNERS.items():
        if not (root / name).is_file():
            continue
        if name == "tokenizer_config.json" and _has_their_tokenizer(root):
            continue
        owner, fields = owner_of(root / name)
        if owner is None:
            findings.append(Finding(name, "data", f"{key} is not {' or '.join(classes)}"))
            continue
        if relies_on_code(fields):
            expected |= flat_copies(entry_modules(owner.entry_points))
        findings += [Finding(name, "data", problem) for problem in _problems(owner, fields, root / name)]
    return expected, findings


def _has_their_tokenizer(root: Path) -> bool:
    """Whether a model's tokenizer is of a class that transformers has, and asks for no code."""
    fields = owner_of(root / "tokenizer_config.json")[1]
    kind = str(fields.get("tokenizer_class"))
    known = bool({kind, kind.removesuffix("Fast")} & _THEIRS)
    return known and "auto_map" not in fields and (root / "config.json").is_file()


def _problems(owner: Any, fields: dict[str, Any], file: Path) -> Iterator[str]:
    """What the fields of a configuration or a tokenizer ask for that they should not."""
    found = fields.get("auto_map")
    if "auto_map" in fields and found not in (owner.entry_points, notes(owner.entry_points)):
        yield f"auto_map names other code than dragoman {VERSION} does: {found!r:.200}"
    if fields.get("custom_pipelines"):
        yield f"custom_pipelines names code: {fields['custom_pipelines']!r:.200}"
    try:
        if issubclass(owner, PreTrainedConfig):
            owner.from_dict(dict(fields))
        else:
            check_fields(fields, file)
    except Exception as error:  # whatever is wrong with it
        yield str(error)


def _look(path: Path, name: str, code: str | None, known: set[str]) -> Finding:
    if code is not None:
        return Finding(name, "code", _difference(path, code))
    if _DOWNLOADS.fullmatch(name):
        return Finding(name, "download")
    if name.startswith(STAGE):
        return Finding(name, "unknown", "left by a process that died while it saved: delete it")
    if "/" in name:
        return Finding(name, "unknown", "dragoman writes no files into folders")
    if path.suffix == ".py":
        return Finding(name, "code", f"not code that dragoman {VERSION} writes here")
    if path.suffix in _PICKLES:
        return Finding(name, "pickle", "may run code when it is loaded: use safetensors, and delete it")
    try:
        if name in known or _REPORTS.fullmatch(name):
            if path.suffix == ".json":
                read_object(path)
            return Finding(name, "data")
        if _WEIGHTS.fullmatch(name):
            check_safetensors(path)
            return Finding(name, "weights")
        if _INDEX.fullmatch(name):
            lost = [shard for shard in shard_names(path) if not (path.parent / shard).is_file()]
            return Finding(name, "index", f"names files that are missing: {', '.join(lost)}" if lost else None)
    except (ValueError, OSError) as error:
        return Finding(name, "broken", str(error))
    if name in _TEXTS:
        return Finding(name, "text")
    return Finding(name, "unknown", "not a file of dragoman's: delete it, or look at it yourself")


def _difference(path: Path, expected: str) -> str | None:
    found = path.read_bytes()
    if found == expected.encode("utf-8"):
        return None
    version = re.match(re.escape(HEADER.encode()) + rb"([\w.]+) ", found)
    if version and version[1].decode() != VERSION:
        written_by = version[1].decode()
        return f"says dragoman {written_by}, this is {VERSION}: verify with pip install dragoman=={written_by}"
    lines = zip(found.splitlines(True), expected.encode("utf-8").splitlines(True), strict=False)
    first = next((number for number, (a, b) in enumerate(lines, start=1) if a != b), "the last")
    return f"differs from what dragoman {VERSION} writes, first in line {first}"
