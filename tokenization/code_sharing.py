"""A tokenizer's folder that loads without the plugin: which code it needs, and when it is written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from transformers import TokenizersBackend


class CodeSharing(TokenizersBackend):
    """Where `import dragoman` set `export_code`, saving writes the code beside the tokenizer."""

    # What the Auto classes find in such a folder, tokenizer_config.json's auto_map. The second is the "fast" class.
    entry_points: ClassVar[dict[str, list[str | None]]] = {
        "AutoTokenizer": ["tokenization_dragoman.DragomanTokenizer", None]
    }
    export_code: ClassVar[Callable[..., Any] | None] = None

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        auto_map = self.entry_points if self.export_code is None else self.export_code(save_directory)
        self.init_kwargs.pop("auto_map", None)  # of the folder that it was loaded from
        self._auto_map = None if auto_map is None else dict(auto_map)
        names = super().save_pretrained(save_directory, legacy_format, filename_prefix, **kwargs)
        if push_to_hub:  # transformers would push what changes from here on, without the code
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return names
