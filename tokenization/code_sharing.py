"""A tokenizer's folder: which code makes it load without the plugin, and what is checked before it is loaded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi
from transformers import TokenizersBackend

from .tokenizer_files import check_folder


class CodeSharing(TokenizersBackend):
    """Where `import dragoman` set the hooks, saving writes the code beside the tokenizer, and the card."""

    # What the Auto classes find in such a folder, tokenizer_config.json's auto_map. The second is the "fast" class.
    entry_points: ClassVar[dict[str, list[str | None]]] = {
        "AutoTokenizer": ["tokenization_dragoman.DragomanTokenizer", None]
    }
    export_code: ClassVar[Callable[..., Any] | None] = None
    write_card: ClassVar[Callable[..., Any] | None] = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError for a folder with broken files."""
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_folder(folder, cls.vocab_files_names.values())
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        auto_map = self.entry_points if self.export_code is None else self.export_code(save_directory)
        if auto_map is not None:
            self.init_kwargs.pop("auto_map", None)  # of the folder that it was loaded from
            self._auto_map = dict(auto_map)
        names = super().save_pretrained(save_directory, legacy_format, filename_prefix, **kwargs)
        if self.write_card is not None:
            self.write_card(save_directory)
        if push_to_hub:  # transformers would push what changes from here on, without the code
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return names

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike[str],
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> Any:
        """All of the folder, which is push_to_hub's own. Where one vocabulary follows two, the second one goes."""
        # Private in transformers, and the only place after push_to_hub wrote a README.md of its own over ours.
        if self.write_card is not None:
            self.write_card(working_dir, repo_id, token=token, revision=revision, fetch=True)
        api = HfApi(token=token)
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(working_dir),
            commit_message=commit_message or "Upload tokenizer",
            revision=revision,
            delete_patterns=list(self.vocab_files_names.values()),
            create_pr=create_pr,
            commit_description=commit_description,
        )
