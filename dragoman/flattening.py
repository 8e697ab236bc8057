"""Flat copies of the travelling code: what a class needs, one file beside the other, importing siblings only.

transformers runs code beside a checkpoint (``trust_remote_code=True``) only where files import siblings, and finds them
by reading the text. So the imports of the sources are followed, and ``from ..wing.module import x`` becomes
``from .module import x``; nothing else changes. A header names version, source, hash and licence. The same sources give
the same bytes.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from .configuration.base_configuration import VERSION

WINGS = ("configuration", "modeling", "tokenization")
HEADER = "# Written by dragoman "
_RELATIVE_IMPORT = re.compile(rb"from[\s.]+[\w.]+")


def entry_modules(entry_points: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that an ``auto_map`` names: values are ``module.Class``, or a tokenizer's list of two of them."""
    references = [value if isinstance(value, str) else next(filter(None, value)) for value in entry_points.values()]
    return tuple(dict.fromkeys(reference.split(".")[0] for reference in references))


@cache
def flat_copies(modules: tuple[str, ...]) -> Mapping[str, str]:
    """``{file name: text}`` of some modules of the wings and all that they import, directly or not."""
    copies: dict[str, str] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if f"{module}.py" not in copies:
            wing, source = _read(module)
            body, siblings = flatten(source)
            copies[f"{module}.py"] = _header(wing, module, source) + body
            pending += siblings
    copies[f"{modules[0]}.py"] += _companions(sorted(name.removesuffix(".py") for name in copies), modules[0])
    return dict(sorted(copies.items()))


def flatten(source: str) -> tuple[str, list[str]]:
    """A source whose relative imports name siblings, and these siblings.

    Raises:
        ValueError: for a relative import that is not of a concrete module.
    """
    lines = source.encode("utf-8").splitlines(keepends=True)  # ast counts columns in bytes
    siblings = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            if node.module is None:
                raise ValueError(f"line {node.lineno}: import names from a concrete module, not modules from a package")
            module = node.module.split(".")[-1]
            line, start = lines[node.lineno - 1], node.col_offset
            lines[node.lineno - 1] = line[:start] + _RELATIVE_IMPORT.sub(b"from ." + module.encode(), line[start:], 1)
            siblings.append(module)
    return b"".join(lines).decode("utf-8"), siblings


def _read(module: str) -> tuple[str, str]:
    """The wing that a module lives in, and its source. File names are unique across the wings."""
    for wing in WINGS:
        file = files(f"{__package__}.{wing}") / f"{module}.py"
        if file.is_file():
            return wing, file.read_text("utf-8")
    raise ValueError(f"no wing has a module {module!r}: an entry point is wrong, or a module is missing")


def _header(wing: str, module: str, source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).hexdigest()
    return (
        f"{HEADER}{VERSION} from its {wing}/{module}.py; changes here are lost.\n"
        f"# SHA-256 of that source: {digest}\n"
        "# To compare all copies with an installation of that version: python -m dragoman verify FOLDER\n"
        "# SPDX-License-Identifier: Apache-2.0\n"
    )


def _companions(modules: Iterable[str], first: str) -> str:
    """Makes the module that is loaded first name all others.

    Every model saved from a copy brings them along then; and where a download broke off, transformers, which looks for
    missing files no deeper than in those that it has just fetched, gets the rest the next time.
    """
    imports = "".join(f"    from .{module} import *\n" for module in modules if module != first)
    reason = "# never runs; transformers copies the files it finds named, so they stay together"
    return f"\n\nif False:  {reason}\n{imports}" if imports else ""
