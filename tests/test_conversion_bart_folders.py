"""Folders of BART's kin as they are found: sharded, in half precision, of old versions of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from bart_models import ARCHITECTURES, tiny
from dragoman.conversion import ConversionError, convert_from, convert_to
from dragoman.conversion.families import HEAD, SOURCE, TARGET
from dragoman.conversion.folders import convert_folder
from ladder import assert_same_weights, ragged
from support import relative_error
from test_conversion_fsmt import fsmt

SHARED = "model.shared.weight"
EMBEDDINGS = (SHARED, "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
OLD_FIELDS: dict[str, Any] = {  # of no meaning to the in-tree classes
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "extra_pos_embeddings": 2,
    "gradient_checkpointing": False,
    "normalize_before": True,
    "normalize_embedding": True,
    "static_position_embeddings": True,
    "num_hidden_layers": 3,
    "bos_token_id": 0,
    "task_specific_params": {"summarization": {"num_beams": 6}},
}
OLD_GENERATION: dict[str, Any] = {
    "num_beams": 3,
    "no_repeat_ngram_size": 1,
    "min_length": 9,
    "max_length": 14,
    "early_stopping": True,
    "length_penalty": 0.8,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 2,
}


def rewrite(folder: Path, config: dict[str, Any], remove: tuple[str, ...] = (), **tensors: Tensor) -> None:
    """Change what a saved folder holds."""
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    stored = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor.clone() for name, tensor in stored.items() if name not in remove}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits[inputs["decoder_attention_mask"].bool()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_old_folder(architecture: str, tmp_path: Path) -> None:
    """Copies of the embeddings, fields that nothing reads, and generation settings in config.json."""
    theirs = tiny(architecture, bos_token_id=0)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    copies = dict.fromkeys(EMBEDDINGS, theirs.lm_head.weight.detach())
    rewrite(tmp_path, OLD_FIELDS | OLD_GENERATION, **copies)
    theirs, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), convert_from(tmp_path)
    assert (ours.config.share_embeddings, ours.config.tie_word_embeddings, ours.config.bos_token_id) == (True, True, 0)
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.generation_config.num_beams == 3
    back = convert_to(ours, theirs.config.model_type)
    assert back.config.bos_token_id == 0
    assert_same_weights(back, theirs)

    inputs = ragged(theirs)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = theirs.generate(**source)
    assert expected[:, 1].tolist() == [7] * 4
    torch.testing.assert_close(ours.generate(**source), expected)
    ours.save_pretrained(tmp_path / "ours")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again.generate(**source), expected)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_tied_embeddings_under_any_one_name(name: str, tmp_path: Path) -> None:
    theirs = tiny("MBart")
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, {}, remove=EMBEDDINGS)
    rewrite(tmp_path, {}, **{name: theirs.lm_head.weight.detach()})
    assert_same_weights(convert_from(tmp_path), convert_from(theirs))
    rewrite(tmp_path, {}, remove=EMBEDDINGS)
    with pytest.raises(ConversionError, match=r"there is no model\.encoder\.embed_tokens\.weight"):
        convert_from(tmp_path)


def test_untied_embeddings(tmp_path: Path) -> None:
    """Each its own; or shared by both inputs, as transformers 4 wrote them; but not one in place of another."""
    theirs = tiny("Bart", tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path)
    state = convert_from(tmp_path).state_dict()
    stored = load_file(tmp_path / "model.safetensors")
    for ours, name in ((SOURCE, EMBEDDINGS[1]), (TARGET, EMBEDDINGS[2]), (HEAD, EMBEDDINGS[3])):
        torch.testing.assert_close(state[ours], stored[name], rtol=0, atol=0)
    rewrite(tmp_path, {}, remove=EMBEDDINGS[1:2])
    with pytest.raises(ConversionError, match=r"there is no model\.encoder\.embed_tokens\.weight"):
        convert_from(tmp_path)
    rewrite(tmp_path, {}, remove=EMBEDDINGS[1:3])
    state = convert_from(tmp_path).state_dict()
    for ours, name in ((SOURCE, SHARED), (TARGET, SHARED), (HEAD, EMBEDDINGS[3])):
        torch.testing.assert_close(state[ours], stored[name], rtol=0, atol=0)


def test_a_head_that_differs_is_not_tied_whatever_the_configuration_says(tmp_path: Path) -> None:
    theirs = tiny("Bart")
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, {}, **{"lm_head.weight": torch.randn(61, 32)})
    theirs, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), convert_from(tmp_path)
    assert (ours.config.share_embeddings, ours.config.tie_word_embeddings) == (True, False)
    inputs = ragged(theirs)
    assert relative_error(logits(ours, inputs), logits(theirs, inputs)) < 1e-5


def test_what_the_class_ignores(tmp_path: Path) -> None:
    tiny("Bart").save_pretrained(tmp_path)
    rewrite(tmp_path, {}, **{"model.encoder.version": torch.ones(1)})
    convert_from(tmp_path)
    rewrite(tmp_path, {}, **{"model.encoder.revision": torch.ones(1)})
    with pytest.raises(ConversionError, match=r"model\.encoder\.revision has no counterpart"):
        convert_from(tmp_path)


def test_tables_of_positions(tmp_path: Path) -> None:
    """Older folders hold none; one that holds other numbers is another model."""
    theirs = tiny("Pegasus")
    theirs.save_pretrained(tmp_path)
    names = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
    rewrite(tmp_path, {}, remove=names)
    assert_same_weights(convert_from(tmp_path), convert_from(theirs))
    rewrite(tmp_path, {}, **{names[1]: torch.randn(64, 32)})
    with pytest.raises(ConversionError, match=r"model\.decoder\.embed_positions\.weight holds no sinusoids"):
        convert_from(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shards_and_half_precision(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny(architecture).to(dtype).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), convert_from(tmp_path)
    assert ours.dtype == theirs.dtype == dtype
    assert_same_weights(convert_to(ours, theirs.config.model_type), theirs)
    inputs = ragged(theirs)
    limit = 10 * torch.finfo(dtype).eps
    assert relative_error(logits(ours, inputs).float(), logits(theirs, inputs).float()) < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["pegasus", "fsmt"])
def test_folders_of_half_precision_there_and_back(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """In-tree they hold sinusoids, rounded; ours are computed. Other numbers there are another model still."""
    theirs = tiny("Pegasus") if family == "pegasus" else fsmt()
    theirs.to(dtype).save_pretrained(tmp_path / "theirs")
    assert convert_folder(tmp_path / "theirs", tmp_path / "ours").comparison.holds
    assert convert_folder(tmp_path / "ours", tmp_path / "back", family).comparison.holds
    assert_same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back"), theirs)
    if family == "pegasus":
        rewrite(tmp_path / "theirs", {}, **{"model.decoder.embed_positions.weight": torch.randn(64, 32).to(dtype)})
        with pytest.raises(ConversionError, match="holds no sinusoids"):
            convert_folder(tmp_path / "theirs", tmp_path / "again")


def test_several_end_tokens(tmp_path: Path) -> None:
    theirs = tiny("Bart", eos_token_id=[2, 5])
    theirs.save_pretrained(tmp_path)
    ours = convert_from(tmp_path)
    assert ours.config.eos_token_id == 2
    assert ours.generation_config.eos_token_id == [2, 5]
    assert convert_to(ours, "bart").generation_config.eos_token_id == [2, 5]
