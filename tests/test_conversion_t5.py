"""T5's weights, in and out: T5 1.0, 1.1, FLAN and ByT5 are one family in-tree, mT5 and umT5 one each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Gemma2Config,
    T5GemmaConfig,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from conversion_checks import check_every_key_counts, check_fine_tuning, check_permuted_heads_are_seen
from dragoman import DragomanConfig
from dragoman.conversion import ConversionError, convert_from, convert_to
from dragoman.conversion.folders import convert_folder
from ladder import TOLERANCE, assert_same_weights, climb, go_around, ragged, randomise
from support import batch, build, relative_error, tiny

CLASSES: dict[str, tuple[Any, Any]] = {
    "t5": (T5Config, T5ForConditionalGeneration),
    "mt5": (MT5Config, MT5ForConditionalGeneration),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration),
}
GATED = {"feed_forward_proj": "gated-gelu"}
# T5 1.1, FLAN and ByT5; 5.23 reads from a file's "untied" that logits are not scaled
NEWER = {**GATED, "tie_word_embeddings": False, "apart": ("lm_head",)}
VARIANTS: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5, gated, tied": GATED,
    "t5 1.1": NEWER,
    "t5 1.1, tied all the same": {**NEWER, "apart": ()},
    "t5, untied and scaled": {"apart": ("lm_head",)},
    "t5, gelu": {"feed_forward_proj": "gelu"},
    "t5, gated gelu_new by name": {"feed_forward_proj": "gated-gelu_new"},
    "t5, gated silu": {"feed_forward_proj": "gated-silu"},
    "t5, gated exact gelu": {**GATED, "dense_act_fn": "gelu"},
    "t5, heads fill the width": {"d_kv": 8},
    "t5, other buckets": {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 5},
    "t5, other ids": {"pad_token_id": 60, "decoder_start_token_id": 58, "bos_token_id": 58, "eos_token_id": 59},
    "t5, own source embeddings": {"apart": ("encoder.embed_tokens",)},
    "t5, all embeddings apart": {"apart": ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")},
    "mt5": {"family": "mt5", "apart": ("lm_head",)},
    "mt5, tied, relu": {"family": "mt5", "feed_forward_proj": "relu"},
    "umt5": {"family": "umt5", "apart": ("lm_head",)},
    "umt5, tied, relu": {"family": "umt5", "feed_forward_proj": "relu"},
}


def t5(family: str = "t5", apart: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """``apart``: which of the three tables are tensors of their own, as they are after loading a file that says so.

    In-tree ``generate`` fails with more layers in the decoder than in the encoder: it sizes the cache by the latter.
    """
    sizes = {
        "vocab_size": 61,
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 40,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "layer_norm_epsilon": 1e-5,
        "decoder_start_token_id": 0,
    }
    config_class, model_class = CLASSES[family]
    model = model_class(config_class(**{**sizes, **options}))
    for name in apart:
        module = model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().clone())
    return randomise(model)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ladder(variant: str, side: str) -> None:
    theirs = t5(**VARIANTS[variant])
    climb(theirs, go_around(theirs), side)


@pytest.mark.parametrize("family", CLASSES)
def test_more_layers_in_the_decoder(family: str) -> None:
    theirs = t5(family, num_layers=2, num_decoder_layers=3)
    theirs.generation_config.use_cache = False
    climb(theirs, go_around(theirs))


@pytest.mark.parametrize("variant", ["t5", "t5 1.1, tied all the same", "mt5, tied, relu", "umt5, tied, relu"])
def test_every_key_counts(variant: str, tmp_path: Path) -> None:
    check_every_key_counts(t5(**VARIANTS[variant]), tmp_path)


@pytest.mark.parametrize("variant", ["t5", "t5 1.1", "mt5", "umt5"])
def test_permuted_heads_are_seen(variant: str) -> None:
    check_permuted_heads_are_seen(t5(**VARIANTS[variant]))


@pytest.mark.parametrize("variant", ["t5", "t5 1.1", "t5, own source embeddings", "mt5", "umt5"])
def test_fine_tuning(variant: str, tmp_path: Path) -> None:
    check_fine_tuning(t5(dropout_rate=0.0, **VARIANTS[variant]), tmp_path)


def test_the_newer_models_are_untied_and_not_scaled() -> None:
    """Otherwise half of what is said above would be tested on models that do not differ."""
    scales = {name: convert_from(t5(**options)).config.logits_scale for name, options in VARIANTS.items()}
    unscaled = {"t5 1.1", "t5 1.1, tied all the same", "mt5", "mt5, tied, relu"}
    assert {name for name, scale in scales.items() if scale == 1.0} == unscaled
    assert {scale for name, scale in scales.items() if name not in unscaled} == {32**-0.5}
    for name, options in VARIANTS.items():
        ours, apart = convert_from(t5(**options)).config, options.get("apart", ())
        assert ours.tie_word_embeddings == ("lm_head" not in apart), name
        assert ours.share_embeddings == ("encoder.embed_tokens" not in apart), name


def test_options_travel() -> None:
    theirs = t5(dropout_rate=0.25, num_heads=8, d_kv=5, d_ff=72, eos_token_id=[59, 60], **GATED)
    ours = go_around(theirs).config
    assert (ours.dropout, ours.attention_dropout, ours.activation_dropout) == (0.25, 0.25, 0.25)
    assert (ours.head_dim, ours.encoder_num_attention_heads, ours.decoder_num_attention_heads) == (5, 8, 8)
    assert (ours.encoder_intermediate_size, ours.decoder_intermediate_size) == (72, 72)
    assert (ours.hidden_act, ours.gated_feed_forward, ours.eos_token_id) == ("gelu_new", True, 59)
    assert convert_from(theirs).generation_config.eos_token_id == [59, 60]
    back = convert_to(convert_from(theirs), "t5").config
    names = ("dropout_rate", "num_heads", "d_kv", "d_ff", "feed_forward_proj", "dense_act_fn", "is_gated_act")
    assert [getattr(back, name) for name in names] == [getattr(theirs.config, name) for name in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", ["t5", "t5 1.1", "mt5", "umt5"])
def test_a_folder_in_shards(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = t5(**VARIANTS[variant]).to(dtype)
    theirs.generation_config = GenerationConfig(num_beams=3, forced_bos_token_id=7, decoder_start_token_id=0)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = convert_from(tmp_path)
    assert_same_weights(ours, convert_from(theirs))
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    assert ours.generation_config.to_diff_dict() == theirs.generation_config.to_diff_dict()
    back = convert_to(ours, theirs.config.model_type)  # in-tree widens wo to fp32 where the rest is fp16
    assert_same_weights(convert_from(back), ours)
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor.to(dtype), theirs.state_dict()[name]), name


def test_what_in_tree_keeps_in_fp32_is_not_rounded(tmp_path: Path) -> None:
    t5().save_pretrained(tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    ours = convert_from(theirs)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    found, expected = convert_to(ours, "t5").state_dict(), theirs.state_dict()
    assert expected["encoder.block.0.layer.1.DenseReluDense.wo.weight"].dtype == torch.float32
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.float()), name


def hub_folder(folder: Path, theirs: PreTrainedModel, names: dict[str, str], **fields: Any) -> None:
    """A folder as it lies on the Hub since 2020: fields of those days, tables under ``names`` (new: present)."""
    old = {"architectures": [type(theirs).__name__], "n_positions": 512, "output_past": True, "torch_dtype": "float32"}
    config = {**theirs.config.to_diff_dict(), **old, "transformers_version": "4.23.1", **fields}
    for name in ("scale_decoder_outputs", "dense_act_fn", "is_gated_act", "dtype"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
    state = theirs.state_dict()
    tables = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    kept: dict[str, Tensor] = {name: tensor for name, tensor in state.items() if name not in tables}
    kept |= {name: state[present] for name, present in names.items()}
    if theirs.config.model_type != "umt5":
        kept["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 4)
    save_file({name: tensor.clone() for name, tensor in kept.items()}, folder / "model.safetensors", {"format": "pt"})


COPIES = dict.fromkeys(("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight")
HEAD = {"lm_head.weight": "lm_head.weight"}
FOLDERS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "one table": ("t5", {"shared.weight": "shared.weight"}, {}),
    "four copies": ("t5", {**COPIES, "lm_head.weight": "shared.weight"}, {}),
    "no shared": ("t5", {"decoder.embed_tokens.weight": "shared.weight"}, {}),
    "1.1": ("t5 1.1", {**COPIES, **HEAD}, {"tie_word_embeddings": False}),
    "1.1, no shared": (  # MADLAD-400
        "t5 1.1",
        {"decoder.embed_tokens.weight": "shared.weight", **HEAD},
        {"tie_word_embeddings": False},
    ),
    "1.1, tied": ("t5 1.1, tied all the same", COPIES, {"tie_word_embeddings": False}),
    "mt5": ("mt5", {**COPIES, **HEAD}, {"tie_word_embeddings": False}),
    "umt5": ("umt5", {**COPIES, **HEAD}, {"tie_word_embeddings": False, "scalable_attention": True}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_the_hub(name: str, tmp_path: Path) -> None:
    variant, names, fields = FOLDERS[name]
    hub_folder(tmp_path, t5(**VARIANTS[variant]), names, **fields)
    theirs = CLASSES[VARIANTS[variant].get("family", "t5")][1].from_pretrained(tmp_path)
    climb(theirs, convert_from(tmp_path))


def test_a_head_tied_to_the_encoder_alone_is_a_copy(tmp_path: Path) -> None:
    theirs = t5(apart=("decoder.embed_tokens",))
    tables = {name: name for name in ("shared.weight", "decoder.embed_tokens.weight")}
    hub_folder(tmp_path, theirs, tables)
    inputs = ragged(theirs)
    for ours in (convert_from(theirs), convert_from(tmp_path)):
        assert not ours.config.share_embeddings
        assert not ours.config.tie_word_embeddings
        target = inputs["decoder_attention_mask"].bool()
        assert relative_error(ours(**inputs).logits[target], theirs(**inputs).logits[target]) < TOLERANCE


def test_what_a_file_lacks_is_named(tmp_path: Path) -> None:
    hub_folder(tmp_path, t5(**NEWER), HEAD, tie_word_embeddings=False)
    with pytest.raises(ConversionError, match=r"there is no encoder\.embed_tokens\.weight for our"):
        convert_from(tmp_path)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", CLASSES)
def test_a_model_of_ours_goes_out(family: str, tie: bool, share: bool) -> None:
    ours = build(t5_shaped(family, tie_word_embeddings=tie, share_embeddings=share))
    theirs = convert_to(ours, family)
    again = convert_from(theirs)
    assert_same_weights(again, ours)
    assert (theirs.lm_head.weight is theirs.decoder.embed_tokens.weight) == tie
    assert (theirs.encoder.embed_tokens.weight is theirs.decoder.embed_tokens.weight) == share
    unused = {"max_position_embeddings", "initializer_range", "dtype", "_name_or_path"}
    before, after = ours.config.to_dict(), again.config.to_dict()
    assert {name for name in before if before[name] != after[name]} <= unused
    inputs = batch(ours.config)
    found, expected = theirs(**inputs), ours(**inputs)
    assert relative_error(found.logits, expected.logits) < TOLERANCE


@pytest.mark.parametrize("family", list(CLASSES))
def test_folders_of_plain_configurations(family: str, tmp_path: Path) -> None:
    """Without a bos_token_id, which their configurations need not have, and with relative positions and a limit."""
    config_class, model_class = CLASSES[family]
    sizes = {"vocab_size": 97, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = config_class(**sizes, decoder_start_token_id=0)
    model_class(config).save_pretrained(tmp_path / "theirs")
    assert convert_folder(tmp_path / "theirs", tmp_path / "ours").comparison.holds
    build(t5_shaped(family, max_position_embeddings=50)).save_pretrained(tmp_path / "limited")
    conversion = convert_folder(tmp_path / "limited", tmp_path / "back", family)
    assert conversion.comparison.equal_tokens == 3 * 49


def t5_shaped(family: str, **options: Any) -> DragomanConfig:
    fields = {
        "encoder_intermediate_size": 40,
        "decoder_intermediate_size": 40,
        "position_encoding": "relative",
        "relative_attention_per_layer": family == "umt5",
        "norm_type": "rms_norm",
        "norm_placement": "pre",
        "feed_forward_bias": False,
        "attention_scale": 1.0,
        "logits_scale": 1.0 if family == "mt5" else 32**-0.5,
        "scale_embedding": False,
    }
    return tiny(**{**fields, **options})


def test_what_t5_cannot_say_is_listed() -> None:
    config = t5_shaped(
        "t5",
        position_encoding="alibi",
        norm_placement="post",
        attention_bias=True,
        attention_scale=None,
        logits_scale=2.0,
        logits_bias=True,
        decoder_num_attention_heads=8,
        decoder_intermediate_size=48,
        attention_dropout=0.1,
        source_vocab_size=29,
        share_embeddings=False,
    )
    with pytest.raises(ConversionError) as error:
        convert_to(build(config), "t5")
    for problem in (
        "position_encoding='alibi'; t5 has 'relative' only",
        "norm_placement='post'; t5 has 'pre' only",
        "final_norm=False; t5 has True only",
        "attention_bias=True; t5 has False only",
        "attention_scale=None; t5 has 1.0 only",
        "logits_scale=2.0; t5 has 0.1767766952966369 or 1.0 only",
        "logits_bias=True; t5 has False only",
        "encoder_num_attention_heads=4, decoder_num_attention_heads=8; t5 has one num_heads for them",
        "encoder_intermediate_size=40, decoder_intermediate_size=48; t5 has one d_ff for them",
        "dropout=0.0, attention_dropout=0.1, activation_dropout=0.0; t5 has one dropout_rate for them",
        "source_vocab_size=29; t5 has None only",
    ):
        assert f"- {problem}" in str(error.value)
    assert len(error.value.problems) == 11


@pytest.mark.parametrize(
    ("family", "wrong", "to"),
    [
        ("t5", "relative_attention_per_layer=False; umt5 has True only", "umt5"),
        ("umt5", "relative_attention_per_layer=True; t5 has False only", "t5"),
        ("mt5", "logits_scale=1.0; umt5 has 0.1767766952966369 only", "umt5"),
        ("t5", "logits_scale=0.1767766952966369; mt5 has 1.0 only", "mt5"),
    ],
)
def test_members_of_the_family_differ(family: str, wrong: str, to: str) -> None:
    with pytest.raises(ConversionError, match=wrong):
        convert_to(convert_from(t5(family)), to)


def test_grouped_heads_are_refused() -> None:
    with pytest.raises(ConversionError):
        convert_to(build(t5_shaped("t5", encoder_num_key_value_heads=2)), "t5")


def test_options_that_we_do_not_have_are_named() -> None:
    theirs = t5(feed_forward_proj="gated-tanh")
    del theirs.config.decoder_start_token_id
    with pytest.raises(ConversionError, match=r"(?s)decoder_start_token_id is not set.*their pad token, 0.*hidden_act"):
        convert_from(theirs)
    with pytest.raises(ConversionError, match="relative_attention_num_buckets must be at least 4"):
        convert_from(t5(relative_attention_num_buckets=3))  # in-tree divides by zero
    with pytest.raises(ConversionError, match="relative_attention_max_distance 4 must exceed"):
        convert_from(t5(relative_attention_max_distance=4))  # in-tree, too


@pytest.mark.parametrize(("config", "reason"), [(T5GemmaConfig, "capped by tanh"), (T5Gemma2Config, "in one softmax")])
def test_t5gemma_is_refused_with_the_reason(config: Any, reason: str, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConversionError, match=f"needs what no other family here has: .*{reason}"):
        convert_from(tmp_path)
    with pytest.raises(ConversionError, match=reason):
        convert_to(build(t5_shaped("t5")), config.model_type)


def test_the_tokenizer_of_umt5_stays_the_one_that_transformers_takes(tmp_path: Path) -> None:
    """The one of its file, whatever class the folder names: T5's would be built anew, and cut texts otherwise."""
    pieces = [(piece, -float(n)) for n, piece in enumerate(["<pad>", "</s>", "<unk>", *"ab▁", "ab", "a▁b"])]
    backend = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
    for named in ({"tokenizer_class": "T5Tokenizer"}, {}):
        theirs, ours = tmp_path / f"theirs{len(named)}", tmp_path / f"ours{len(named)}"
        t5("umt5").save_pretrained(theirs)
        backend.save(str(theirs / "tokenizer.json"))
        (theirs / "tokenizer_config.json").write_text(json.dumps({**named, "pad_token": "<pad>", "eos_token": "</s>"}))
        convert_folder(theirs, ours)
        convert_folder(ours, tmp_path / f"back{len(named)}", "umt5")
        expected = AutoTokenizer.from_pretrained(theirs)
        for folder in (ours, tmp_path / f"back{len(named)}"):
            found = AutoTokenizer.from_pretrained(folder)
            assert type(found) is type(expected) is TokenizersBackend
            assert found("ab a bab")["input_ids"] == expected("ab a bab")["input_ids"]
        assert len(expected("a b")["input_ids"]) == 1
