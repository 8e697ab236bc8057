"""What is saved is what is loaded: weights, ties, buffers, dtypes, sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dragoman.modeling.position_encodings import sinusoids
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from dragoman import DragomanConfig, DragomanEncoderModel, DragomanForConditionalGeneration, DragomanModel
from support import SCHEMES, batch, build, tiny

TYINGS = {
    "three-way": {},
    "inputs": {"tie_word_embeddings": False},
    "decoder and head": {"share_embeddings": False},
    "none": {"tie_word_embeddings": False, "share_embeddings": False},
    "two vocabularies": {"share_embeddings": False, "source_vocab_size": 29},
    "two vocabularies, free head": {"share_embeddings": False, "source_vocab_size": 29, "tie_word_embeddings": False},
}
tyings = pytest.mark.parametrize("tying", TYINGS.values(), ids=TYINGS.keys())


def owners(model: torch.nn.Module) -> list[set[str]]:
    """Names of parameters that are one, grouped."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(parameter.data_ptr(), set()).add(name)
    return sorted((group for group in groups.values() if len(group) > 1), key=str)


@tyings
@pytest.mark.parametrize("shard", ["50KB", "5GB"])
def test_round_trip(tying: dict[str, object], shard: str, tmp_path: Path) -> None:
    config = tiny(**tying)
    model, inputs = build(config), batch(config)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "50KB")
    assert not list(tmp_path.glob("*.bin"))
    loaded, report = DragomanForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert owners(loaded) == owners(model)
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    stored = {key for file in tmp_path.glob("*.safetensors") for key in safe_open(file, "pt").keys()}  # noqa: SIM118
    assert sum(loaded.get_parameter(name).numel() for name in stored) == model.num_parameters()  # nothing twice


@tyings
def test_ties_survive_everything(tying: dict[str, object], tmp_path: Path) -> None:
    config = tiny(**tying)
    expected = owners(build(config))
    model = build(config)
    model.save_pretrained(tmp_path)
    assert owners(AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)) == expected
    assert owners(AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map="auto")) == expected
    assert owners(model.to(torch.float16)) == expected
    if "source_vocab_size" in tying:
        model.resize_source_embeddings(31)
        model.resize_target_embeddings(41)
        sizes = (31, 41)
    else:
        model.resize_token_embeddings(41)
        sizes = (41, 41)
    assert owners(model) == expected
    config = model.config
    assert (config.source_vocab_size or config.vocab_size, config.vocab_size) == sizes
    assert model.model.encoder.embed_tokens.weight.shape[0] == sizes[0]
    assert model.model.decoder.embed_tokens.weight.shape[0] == model.lm_head.weight.shape[0] == sizes[1]
    model.save_pretrained(tmp_path / "resized")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "resized")
    assert owners(again) == expected
    inputs = batch(again.config)
    torch.testing.assert_close(again.to(torch.float16)(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


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


def test_base_model_and_head_load_each_other(tmp_path: Path) -> None:
    model, inputs = build(tiny()), batch(tiny())
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


def test_special_tokens_reach_the_generation_config(tmp_path: Path) -> None:
    model = build(tiny(pad_token_id=3, bos_token_id=4, eos_token_id=5, decoder_start_token_id=6))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert [written[f"{name}_token_id"] for name in ("pad", "bos", "eos", "decoder_start")] == [3, 4, 5, 6]


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


def test_a_new_process_loads_it(tmp_path: Path) -> None:
    model = build(tiny(position_encoding="alibi"))
    model.save_pretrained(tmp_path)
    torch.save(batch(model.config), tmp_path / "inputs.pt")
    program = (
        "import sys, torch, dragoman, dragoman\n"
        "from transformers import AutoModelForSeq2SeqLM\n"
        "model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])\n"
        "print(model(**torch.load(sys.argv[1] + '/inputs.pt')).logits.double().sum().item())"
    )
    printed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(printed.stdout) == pytest.approx(model(**batch(model.config)).logits.double().sum().item(), rel=1e-5)
