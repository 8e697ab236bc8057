"""Languages in mBART: where the decoder starts, in training and in ``generate()``, as its users have it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from bart_models import tiny
from dragoman.conversion import convert_from, convert_to
from ladder import TOLERANCE, ragged
from support import relative_error

LANGUAGE, OTHER, END = 58, 59, 2


def labels_as(shape: str, inputs: dict[str, Tensor], language: int = LANGUAGE) -> Tensor:
    """Labels as the tokenizers of mBART-50 and of cc25 write them, padded with −100."""
    rows = [row[row != -100] for row in inputs["labels"]]
    before, after = {"50": ([language], [END]), "cc25": ([], [END, language])}[shape]
    whole = [torch.cat([torch.tensor(before, dtype=torch.long), row, torch.tensor(after)]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=-100)


def assert_same_training(theirs: PreTrainedModel, ours: Any, labels: Tensor) -> None:
    """Labels alone make the same decoder input and the same loss."""
    inputs = ragged(theirs)
    torch.testing.assert_close(
        ours.prepare_decoder_input_ids_from_labels(labels), theirs.prepare_decoder_input_ids_from_labels(labels)
    )
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}
    assert relative_error(ours(**batch).loss, theirs(**batch).loss) < TOLERANCE


def assert_same_writing(theirs: PreTrainedModel, ours: Any, first: list[int], **settings: Any) -> None:
    inputs = ragged(theirs)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    settings = {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "do_sample": False, **settings}
    expected, found = (model.generate(**source, **settings) for model in (theirs, ours))
    torch.testing.assert_close(found, expected)
    assert found[:, : len(first)].tolist() == [first] * len(found)


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_mbart_50(tmp_path: Path) -> None:
    theirs = tiny("MBart", decoder_start_token_id=END)
    theirs.generation_config.forced_bos_token_id = LANGUAGE
    ours = reloaded(convert_from(theirs), tmp_path)
    assert_same_training(theirs, ours, labels_as("50", ragged(theirs)))
    assert_same_writing(theirs, ours, [END, LANGUAGE])
    assert_same_writing(theirs, ours, [END, OTHER], forced_bos_token_id=OTHER)
    assert convert_to(ours, "mbart").generation_config.forced_bos_token_id == LANGUAGE


def test_a_translator_of_cc25(tmp_path: Path) -> None:
    theirs = tiny("MBart", decoder_start_token_id=LANGUAGE)
    ours = reloaded(convert_from(theirs), tmp_path)
    assert_same_training(theirs, ours, labels_as("cc25", ragged(theirs)))
    assert_same_writing(theirs, ours, [LANGUAGE])
    assert_same_writing(theirs, ours, [OTHER], decoder_start_token_id=OTHER)
    assert convert_to(ours, "mbart").config.decoder_start_token_id == LANGUAGE


def test_cc25_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No start token: it writes as in-tree, goes back as it came, and trains once the language is set."""
    theirs = tiny("MBart", decoder_start_token_id=None)
    ours = convert_from(theirs)
    assert "set model.config.decoder_start_token_id to the id of the target language's code" in caplog.text
    ours = reloaded(ours, tmp_path / "a")
    assert_same_writing(theirs, ours, [0])  # bos_token_id
    assert_same_writing(theirs, ours, [LANGUAGE], decoder_start_token_id=LANGUAGE)
    back = convert_to(ours, "mbart")
    assert back.config.decoder_start_token_id is None
    assert back.generation_config.decoder_start_token_id is None

    ours.config.decoder_start_token_id = LANGUAGE
    assert_same_training(theirs, ours, labels_as("cc25", ragged(theirs)))
    for model in (theirs, ours):
        model.generation_config.decoder_start_token_id = LANGUAGE
    ours = reloaded(ours, tmp_path / "b")
    assert ours.config.decoder_start_token_id == LANGUAGE
    assert_same_writing(theirs, ours, [LANGUAGE])


def test_where_the_two_differ() -> None:
    """In-tree takes any row's last label for its language."""
    theirs = tiny("MBart", decoder_start_token_id=LANGUAGE)
    ours, labels = convert_from(theirs), labels_as("cc25", ragged(theirs), OTHER)
    assert set(theirs.prepare_decoder_input_ids_from_labels(labels)[:, 0].tolist()) == {OTHER}
    assert set(ours.prepare_decoder_input_ids_from_labels(labels)[:, 0].tolist()) == {LANGUAGE}
    inputs = {name: ragged(theirs)[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}
    inputs["decoder_input_ids"] = theirs.prepare_decoder_input_ids_from_labels(labels)  # what the docstring says to do
    assert relative_error(ours(**inputs).loss, theirs(**inputs).loss) < TOLERANCE
