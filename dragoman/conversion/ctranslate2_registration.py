"""Telling CTranslate2's converter about Dragoman, where the engine is installed."""

from importlib.util import find_spec

from transformers.utils import logging

logger = logging.get_logger(__name__)


def register_ctranslate2_loader() -> None:
    """Without the engine nothing happens; one that does not import is worth a warning, not more."""
    if find_spec("ctranslate2") is None:
        return
    try:
        from . import ctranslate2_writer  # noqa: F401
    except (ImportError, OSError) as error:
        logger.warning(f"ctranslate2 is installed but cannot be imported, so it cannot convert Dragoman: {error}")
