"""The model card, README.md: written whenever something is saved, and left alone once a person changed its text.

Its head holds, under ``dragoman``, the facts it was written from and a hash of its text. A text that has this hash was
written here and is written again. Of the other fields of the head, those that still are what the facts gave are
renewed; what a person added, changed or removed stays so.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

from .card_facts import gather
from .card_rendering import metadata, render
from .configuration.base_configuration import VERSION
from .modeling.checkpoint_saving import CheckpointSaving
from .tokenization.tokenization_dragoman import DragomanTokenizer

CARD = "README.md"
KEY, HASH = "dragoman", "text_sha256"
# By this, transformers' push_to_hub describes any model whose repository has no card.
PUSHED = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. "
    "This model card has been automatically generated."
)


def install_cards() -> None:
    """From now on, what is saved describes itself."""
    CheckpointSaving.write_card = write_card
    DragomanTokenizer.write_card = write_card


def write_card(
    saved: Any,
    folder: str | os.PathLike[str],
    repo_id: str | None = None,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    fetch: bool = False,
) -> None:
    """The hook of the travelling classes. ``fetch`` first takes over a card that a person wrote on the Hub."""
    if fetch and repo_id is not None:
        adopt(Path(folder), repo_id, token, revision)
    refresh(Path(folder), repo_id)


def refresh(folder: Path, name: str | None = None, live: Mapping[str, Any] | None = None) -> bool:
    """Write a folder's card unless it is a person's; whether it was written.

    ``live`` holds facts that no file holds: ``training``, of a Trainer, and ``stated``, by who asked for the card.
    """
    file = folder / CARD
    content = _read(file)
    card = None if is_blank(content) else _ours(content)
    if card is None and not is_blank(content):
        return False
    head = _as_written(card.data.to_dict()) if card else _added_tags(content)
    known = head.pop(KEY, {})
    name = name or known.get("name") or folder.resolve().name
    facts = gather(folder, known)
    for section, values in (live or {}).items():
        # What was said of the model before, and is not of this one, goes; the licence nobody but a person tells.
        gone = {key for key in values if section == "stated" and key != "license"}
        kept = {key: value for key, value in facts.get(section, {}).items() if key not in gone}
        facts[section] = kept | {key: value for key, value in values.items() if value}
    if not facts:
        return False
    before = metadata(known["name"], known) if known else {}
    text = render(name, facts)
    head = merge(head, before, metadata(name, facts))
    head[KEY] = {"version": VERSION, HASH: _hash(text), "name": name, **facts}
    data = ModelCardData(**head)
    partial = file.with_name(f"_{CARD}.partial")  # as for code: Trainer does not push it
    # Parsed and written once more, the fields have the order in which ModelCard leaves them.
    partial.write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")), "utf-8", newline="\n")
    partial.replace(file)
    return True


def _as_written(head: dict[str, Any]) -> dict[str, Any]:
    """YAML takes Norwegian, a bare ``no``, for a boolean."""
    languages = head.get("language")
    if isinstance(languages, list):
        head["language"] = ["no" if each is False else each for each in languages]
    elif languages is False:
        head["language"] = "no"
    return head


def merge(current: Mapping[str, Any], before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they are, where they are no longer what was written ``before``; else the new ones. Tags add up."""
    fields = dict(current)
    for key in (*before, *new):
        if current.get(key) == before.get(key):
            fields[key] = new.get(key)
    if "tags" not in before:
        fields["tags"] = list(dict.fromkeys([*new.get("tags", ()), *(current.get("tags") or ())]))
    return {key: value for key, value in fields.items() if value is not None}


def adopt(folder: Path, repo_id: str, token: str | bool | None = None, revision: str | None = None) -> None:
    """Put a card that a person wrote on the Hub into the folder, unless a person wrote the folder's too.

    With a ``revision`` it is that branch's, over what is in the folder: there transformers has put the main branch's.
    A branch that is yet to be made begins with that one.

    Raises ConnectionError where the Hub does not say what is there: the card is not to be written over unseen.
    """
    anew: dict[str, Any] = {"token": token, "force_download": True}  # else an old one, of the cache
    try:
        remote = Path(hf_hub_download(repo_id, CARD, revision=revision, **anew))
    except RevisionNotFoundError:
        adopt(folder, repo_id, token)
        return
    except RemoteEntryNotFoundError:
        return
    except ValueError as error:  # huggingface_hub's, whatever it was that failed
        raise ConnectionError(f"Cannot look up the card of {repo_id}: {error.__cause__ or error}") from error
    if is_edited(remote) and (revision is not None or not is_edited(folder / CARD)):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(remote, folder / CARD)


def is_edited(file: Path) -> bool:
    """Whether a person wrote a card, or changed the text of one that was written here. No file: no."""
    content = _read(file)
    return not is_blank(content) and _ours(content) is None


def is_blank(content: str) -> bool:
    """No card, or the form that transformers' push_to_hub leaves to be filled in."""
    return not content.strip() or (PUSHED in content and _text(content) == _form())


def _ours(content: str) -> ModelCard | None:
    """The card, where it was written here and its text is as it was."""
    if HASH not in content:  # else ModelCard would warn of any text without a head
        return None
    try:
        card = ModelCard(content)
        known = card.data.get(KEY)
        metadata(known["name"], known), render(known["name"], known)
        return card if known[HASH] == _hash(card.text) else None
    except Exception:  # whatever is wrong with it, it was not written here
        return None


def _added_tags(content: str) -> dict[str, Any]:
    """What transformers' form says that is not in every one: push_to_hub(tags=...)."""
    return {"tags": ModelCard(content).data.get("tags")} if content.strip() else {}


def _read(file: Path) -> str:
    """A card; what is no text counts as a person's."""
    if not file.is_file():
        return ""
    return file.read_text("utf-8-sig", errors="replace")


def _text(content: str) -> str:
    return ModelCard(content, ignore_metadata_errors=True).text.strip()


@cache
def _form() -> str:
    return ModelCard.from_template(ModelCardData(library_name="transformers"), model_description=PUSHED).text.strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8")).hexdigest()
