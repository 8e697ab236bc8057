"""What is saved is what is loaded: weights, ties, buffers, dtypes, sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling.position_encodings import sinusoids
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from dragoman import (
    DragomanConfig,
    DragomanEncoderModel,
    DragomanForConditionalGeneration,
    DragomanModel,
    DragomanRecurrentForConditionalGeneration,
)
from support import SCHEMES, batch, build, recurrent, tiny


def test_resizing_keeps_the_old_rows() -> None:
    model, inputs = build(tiny(logits_bias=True)), batch(tiny())
    logits = model(**inputs).logits
    model.resize_token_embeddings(45)
    torch.testing.assert_close(model(**inputs).logits[..., :37], logits)
    model.resize_token_embeddings(37)
    torch.testing.assert_close(model(**inputs).logits, logits)
    two = build(tiny(share_embeddings=False, source_vocab_size=29))
    with pytest.raises(ValueError, match="resize_source_embeddings or resize_target_embeddings"):
        two.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="call resize_token_embeddings"):
        model.resize_source_embeddings(50)


@pytest.mark.parametrize("config", [tiny(), tiny(share_embeddings=False), recurrent()])
def test_resized_embeddings_know_their_size(config: Any) -> None:
    """peft goes by it."""
    model = build(config)
    model.resize_token_embeddings(45)
    for side in (model.get_encoder(), model.get_decoder()):
        assert side.embed_tokens.num_embeddings == len(side.embed_tokens.weight) == 45


def test_resizing_to_a_multiple_of() -> None:
    one, own = build(tiny()), build(tiny(share_embeddings=False))
    for model in (one, own):
        model.resize_token_embeddings(41, pad_to_multiple_of=8)
        sides = model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight
        assert [len(side) for side in sides] == [len(model.lm_head.weight), model.config.vocab_size] == [48, 48]
    encoder = DragomanEncoderModel(tiny(share_embeddings=False))
    assert encoder.resize_token_embeddings(41, pad_to_multiple_of=8).num_embeddings == 48
    two = build(tiny(share_embeddings=False, source_vocab_size=29))
    for resize, size in ((two.resize_source_embeddings, 32), (two.resize_target_embeddings, 40)):
        assert resize(size - 1, pad_to_multiple_of=8).num_embeddings == size


@pytest.mark.parametrize("mean_resizing", [True, False])
def test_new_rows_begin_at_the_mean_where_asked(mean_resizing: bool) -> None:
    two = build(tiny(share_embeddings=False, source_vocab_size=29, tie_word_embeddings=False))
    two.resize_source_embeddings(31, mean_resizing=mean_resizing)
    two.resize_target_embeddings(41, mean_resizing=mean_resizing)
    one = build(tiny(share_embeddings=False))
    one.resize_token_embeddings(41, mean_resizing=mean_resizing)
    for model in (two, one):
        for part in (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head):
            old = 29 if part is two.model.encoder.embed_tokens else 37
            distance = (part.weight[old:] - part.weight[:old].mean(0)).norm()
            assert (distance < 1e-2) == mean_resizing


@pytest.mark.parametrize("scheme", SCHEMES)
def test_buffers_survive_a_meta_load(scheme: str, tmp_path: Path) -> None:
    """Tables and slopes are not in the file and are empty on the meta device: loading refills them."""
    more = {"position_offset": 2, "sinusoidal_endpoint": True} if scheme == "sinusoidal" else {}
    config = tiny(position_encoding=scheme, **more)
    model, inputs = build(config), batch(config)
    if scheme == "sinusoidal":
        torch.testing.assert_close(model.model.encoder.embedding.positions.table, sinusoids(64, 32, 2, True))
    assert model.state_dict().keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    model.save_pretrained(tmp_path)
    for loaded in (DragomanForConditionalGeneration, DragomanModel):
        again = loaded.from_pretrained(tmp_path)
        for (name, found), (_, expected) in zip(again.named_buffers(), model.named_buffers(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=name)
    with torch.device("meta"):
        again = DragomanForConditionalGeneration(config)
    again.to_empty(device="cpu").bfloat16().float().load_state_dict(model.state_dict())
    for (name, found), (_, expected) in zip(again.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=name)
    inputs.pop("labels")
    base = DragomanModel.from_pretrained(tmp_path)
    ids = torch.full((4, 3), 5)
    found = base(**inputs, decoder_input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, model.model(**inputs, decoder_input_ids=ids).last_hidden_state, rtol=0, atol=0)


def test_a_layer_on_disk(tmp_path: Path) -> None:
    for scheme in ("rotary", "relative"):
        config = tiny(position_encoding=scheme, relative_attention_per_layer=scheme == "relative")
        model, inputs = build(config), batch(config)
        model.save_pretrained(tmp_path / scheme)
        parts = [name for name, _ in model.model.decoder.named_children() if name != "layers"]
        places = dict.fromkeys(["model.encoder", "lm_head", *(f"model.decoder.{part}" for part in parts)], "cpu")
        places |= {"model.decoder.layers.0": "cpu", "model.decoder.layers.1": "disk"}
        loaded = AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / scheme, device_map=places, offload_folder=tmp_path / "off"
        )
        assert loaded.model.decoder.layers[1].self_attn.q_proj.weight.is_meta
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


def test_initial_weights_follow_the_table() -> None:
    sizes = {"vocab_size": 400, "hidden_size": 128, "encoder_intermediate_size": 512, "max_position_embeddings": 512}
    model = DragomanForConditionalGeneration(tiny(position_encoding="learned", tie_word_embeddings=False, **sizes))
    encoder = model.model.encoder
    layer = encoder.layers[0]
    expected = {
        encoder.embed_tokens.weight: 128**-0.5,
        encoder.embedding.positions.weight: 1.0,
        layer.self_attn.q_proj.weight: 128**-0.5,
        layer.feed_forward.up_proj.weight: 128**-0.5,
        layer.feed_forward.down_proj.weight: (512 * 6) ** -0.5,  # three layers of two branches
        layer.self_attn.o_proj.weight: (128 * 6) ** -0.5,
        model.model.decoder.layers[0].cross_attn.o_proj.weight: (128 * 6) ** -0.5,  # two layers of three
        model.lm_head.weight: 128**-0.5,
    }
    for weight, deviation in expected.items():
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    fixed = DragomanForConditionalGeneration(tiny(position_encoding="learned", initializer_range=0.7, **sizes))
    for name, parameter in fixed.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.7, rel=0.05), name
    gru = DragomanRecurrentForConditionalGeneration(recurrent(vocab_size=500, hidden_size=128, initializer_range=0.7))
    for name, parameter in gru.named_parameters():
        if parameter.dim() > 1 and len(parameter) > 1:
            assert parameter.std().item() == pytest.approx(0.7, rel=0.05), name


def test_file_written_by_a_newer_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    assert fields["dragoman_version"]
    file.write_text(json.dumps({**fields, "brand_new": 1}))
    with pytest.raises(ValueError, match="no field 'brand_new'"):
        AutoConfig.from_pretrained(tmp_path)
    file.write_text(json.dumps({**fields, "brand_new": 1, "dragoman_version": "99.0.0"}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, DragomanConfig)
    assert not hasattr(config, "brand_new")
    assert "ignores what it does not know: brand_new" in caplog.text
    caplog.clear()
    file.write_text(json.dumps({**fields, "dragoman_version": "99.0.0"}))
    AutoConfig.from_pretrained(tmp_path)
    assert "written by Dragoman '99.0.0', newer than the" in caplog.text
    assert "pip install -U dragoman" in caplog.text
    file.write_text(json.dumps({**fields, "dragoman_version": "0.1.99"}))  # of the same minor version
    caplog.clear()
    AutoConfig.from_pretrained(tmp_path)
    assert not caplog.text
