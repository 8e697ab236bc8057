"""CTranslate2: a trained model read as the engine reads it, and Dragoman's models written so that it writes the same."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import ctranslate2
import pytest
import torch
from ctranslate2.converters import TransformersConverter
from ctranslate2.converters.transformers import main
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from dragoman import DragomanConfig, DragomanForConditionalGeneration, DragomanTokenizer, presets, quantize
from dragoman.conversion import ctranslate2_writer
from dragoman.conversion.ctranslate2_files import is_ctranslate2_folder, read_variables
from dragoman.conversion.ctranslate2_reader import read_ctranslate2
from dragoman.conversion.ctranslate2_tokens import tokens_of
from dragoman.conversion.ctranslate2_writer import find_unsupported, write_ctranslate2
from support import OPTIONS, batch, build, configured, data_folder, describe, pairwise, tiny

# What translate_batch does without being asked.
AS_THE_ENGINE: dict[str, Any] = {"min_new_tokens": 1, "renormalize_logits": True, "do_sample": False}
LETTERS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"]
LARGE_NAMES = {"hidden_size": 64, "encoder_intermediate_size": 96, "decoder_intermediate_size": 80}


def translator(folder: Path, compute_type: str = "float32") -> ctranslate2.Translator:
    return ctranslate2.Translator(str(folder), compute_type=compute_type, inter_threads=1, intra_threads=1)


def differences(engine: ctranslate2.Translator, model: Any, source: Any, target: Any, ids: Any, labels: Any) -> float:
    """Largest difference of log-probabilities of target tokens, the end included."""
    labels = labels.masked_fill(labels == model.config.pad_token_id, -100)
    with torch.no_grad():
        scores = model(input_ids=ids, labels=labels).logits.log_softmax(-1)
    worst = 0.0
    for row, result in enumerate(engine.score_batch(source, target)):
        known = labels[row][labels[row] != -100]
        found = scores[row, : len(known)].gather(-1, known[:, None])[:, 0]
        assert len(found) == len(result.log_probs)
        worst = max(worst, float((found - torch.tensor(result.log_probs)).abs().max()))
    return worst


def assert_same_state(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


# A trained model


@pytest.fixture(scope="module")
def names() -> list[tuple[str, str]]:
    lines = (data_folder("ar2en") / "ar2en-eval.txt").read_text("utf-8").splitlines()
    return [(arabic, english) for arabic, english in (line.split("\t") for line in lines)]


@pytest.fixture(scope="module")
def original() -> Path:
    return data_folder("aren_transliteration")


@pytest.fixture(scope="module")
def read(original: Path) -> tuple[Any, Any]:
    return read_ctranslate2(original)


@pytest.fixture(scope="module")
def saved(read: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transliteration")
    for part in read:
        part.save_pretrained(folder)
    return folder


def names_as_ids(tokenizer: Any, names: list[tuple[str, str]]) -> Any:
    source, target = [list(pair) for pair in zip(*names, strict=True)]
    return tokenizer(source, text_target=target, padding=True, return_tensors="pt")


def test_trained_model_is_what_its_file_says(read: tuple[Any, Any], original: Path) -> None:
    model, tokenizer = read
    config = model.config
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 182_731
    assert (config.norm_placement, config.hidden_act, config.position_offset) == ("pre", "relu", 1)
    assert config.sinusoidal_endpoint
    assert config.attention_bias
    assert config.logits_bias
    assert not config.tie_word_embeddings
    # <unk> has another id on either side of the engine: it was moved, with its row.
    _, _, stored = read_variables(original / "model.bin")
    assert tokenizer.unk_token_id == 3
    torch.testing.assert_close(model.model.encoder.embed_tokens.weight[3], stored["encoder/embeddings/weight"][50])
    torch.testing.assert_close(model.lm_head.weight[[2, 3, 4]], stored["decoder/projection/weight"][[2, 42, 3]])
    assert tokenizer("آب")["input_ids"] == [tokenizer.convert_tokens_to_ids(letter) for letter in "آب"]  # no end
    assert tokenizer.decode(tokenizer(text_target="abbé")["input_ids"]) == "abb<unk></s>"


def test_trained_model_scores_as_the_engine(read: tuple[Any, Any], original: Path, names: Any) -> None:
    model, tokenizer = read
    batch = names_as_ids(tokenizer, names)
    source, target = zip(*((list(a), list(b)) for a, b in names), strict=True)
    arguments = (list(source), list(target), batch["input_ids"], batch["labels"])
    assert differences(translator(original), model, *arguments) < 1e-4


def test_trained_model_writes_the_engines_words(read: tuple[Any, Any], original: Path, names: Any) -> None:
    """All 1,431 names with beam 4, and the published error rates."""
    model, tokenizer = read
    words: list[str] = []
    for start in range(0, len(names), 128):
        batch = tokenizer([arabic for arabic, _ in names[start : start + 128]], padding=True, return_tensors="pt")
        outputs = model.generate(**batch, num_beams=4, early_stopping=True, **AS_THE_ENGINE)
        words += tokenizer.batch_decode(outputs, skip_special_tokens=True)
    results = translator(original).translate_batch([list(arabic) for arabic, _ in names], beam_size=4)
    assert words == ["".join(result.hypotheses[0]) for result in results]
    wrong = sum(word != english for word, (_, english) in zip(words, names, strict=True))
    edits = sum(Levenshtein.distance(word, english) for word, (_, english) in zip(words, names, strict=True))
    assert round(100 * wrong / len(names), 2) == 76.17
    assert round(100 * edits / sum(len(english) for _, english in names), 2) == 22.22


def test_trained_model_comes_back(saved: Path, original: Path, names: Any, tmp_path: Path) -> None:
    write_ctranslate2(saved, tmp_path / "engine")
    model, tokenizer = read_ctranslate2(tmp_path / "engine")
    expected = DragomanForConditionalGeneration.from_pretrained(saved)
    assert_same_state(model, expected)
    assert model.config.to_diff_dict() == {
        name: value for name, value in expected.config.to_diff_dict().items() if name in model.config.to_diff_dict()
    }
    assert tokenizer("آب").input_ids == DragomanTokenizer.from_pretrained(saved)("آب").input_ids
    source = [list(arabic) for arabic, _ in names]
    found, before = (
        [result.hypotheses for result in translator(folder).translate_batch(source, beam_size=4, num_hypotheses=4)]
        for folder in (tmp_path / "engine", original)
    )
    assert found == before


@pytest.mark.parametrize("quantization", ["int8", "int16", "float16", "bfloat16"])
def test_quantized_weights_are_read_as_the_engine_does(
    saved: Path, original: Path, names: Any, tmp_path: Path, quantization: str
) -> None:
    write_ctranslate2(saved, tmp_path / "engine", quantization)
    assert (tmp_path / "engine" / "model.bin").stat().st_size < 0.6 * (original / "model.bin").stat().st_size
    model, tokenizer = read_ctranslate2(tmp_path / "engine")
    assert model.dtype == torch.float32
    few = names[::20]
    batch = names_as_ids(tokenizer, few)
    source, target = [list(a) for a, _ in few], [list(b) for _, b in few]
    engine = translator(tmp_path / "engine")
    assert differences(engine, model, source, target, batch["input_ids"], batch["labels"]) < 1e-4
    if quantization == "int8":
        in_integers = translator(tmp_path / "engine", "int8").translate_batch(source, beam_size=4)
        exact = translator(original).translate_batch(source, beam_size=4)
        same = sum(a.hypotheses[0] == b.hypotheses[0] for a, b in zip(in_integers, exact, strict=True))
        assert same >= 0.9 * len(few)  # 97.8 % of all 1,431


# Dragoman's own models, written


def written(config: DragomanConfig, folder: Path) -> Any:
    """A model, saved with its tokenizer in ``folder``/ours and written for the engine to ``folder``/engine."""
    target = None if config.source_vocab_size is None else ["zwoelf boxkaempfer jagen viktor quer ueber den deich"]
    sizes = {"target_vocab_size": 31, "share_vocabulary": False} if target else {}
    tokenizer = DragomanTokenizer.train(LETTERS, target, vocab_size=28, algorithm="char", byte_fallback=False, **sizes)
    model = build(config)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "ours")
    write_ctranslate2(folder / "ours", folder / "engine")
    return model


def engine_tokens(folder: Path) -> tuple[list[str], list[str]]:
    files = [folder / f"{name}_vocabulary.json" for name in ("source", "target")]
    files = files if files[0].exists() else [folder / "shared_vocabulary.json"] * 2
    source, target = (json.loads(file.read_text("utf-8")) for file in files)
    return source, target


def padded(rows: list[list[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def assert_engine_writes_the_same(model: Any, folder: Path, rows: int = 10) -> None:
    source_tokens, target_tokens = engine_tokens(folder)
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 13, (rows,), generator=generator).tolist()
    ids = [torch.randint(4, len(source_tokens), (length,), generator=generator).tolist() for length in lengths]
    source = [[source_tokens[i] for i in row] for row in ids]
    engine = translator(folder)
    for beams in (1, 4):
        options = {**AS_THE_ENGINE, "num_beams": beams, "early_stopping": beams > 1, "max_new_tokens": 16}
        outputs = model.generate(padded(ids), no_repeat_ngram_size=1, suppress_tokens=[0, 1], **options)
        ours = [row[: row.index(2)] if 2 in row else row for row in outputs[:, 1:].tolist()]
        results = engine.translate_batch(
            source,
            beam_size=beams,
            max_decoding_length=16,
            no_repeat_ngram_size=1,
            suppress_sequences=[[token] for token in target_tokens[:2]],
        )
        theirs = [[target_tokens.index(token) for token in result.hypotheses[0]] for result in results]
        assert ours == theirs
        assert len({token for row in ours for token in row}) > 8, "a model that repeats itself proves nothing"
    target = [result.hypotheses[0] for result in results]
    labels = padded([[target_tokens.index(token) for token in row] + [2] for row in target])
    assert differences(engine, model, source, target, padded(ids), labels) < 1e-4


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_presets(name: str, tmp_path: Path) -> None:
    sizes = {} if name == "tiny" else LARGE_NAMES
    model = written(presets.PRESETS[name](vocab_size=40, max_position_embeddings=64, **sizes), tmp_path)
    assert_engine_writes_the_same(model, tmp_path / "engine", rows=24)
    found, tokenizer = read_ctranslate2(tmp_path / "engine")
    assert_same_state(found, model)
    assert tokenizer("a dog").input_ids == DragomanTokenizer.from_pretrained(tmp_path / "ours")("a dog").input_ids


EXPORTABLE = {**OPTIONS, "position_encoding": tuple(s for s in OPTIONS["position_encoding"] if s != "alibi")}


@pytest.mark.parametrize("options", pairwise(EXPORTABLE), ids=describe)
def test_option_pairs(options: dict[str, Any], tmp_path: Path) -> None:
    model = written(configured(options, vocab_size=37), tmp_path)
    assert_engine_writes_the_same(model, tmp_path / "engine")
    assert_same_state(read_ctranslate2(tmp_path / "engine")[0], model)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True, "feed_forward_bias": False},
        {"attention_scale": 0.5},
        {"attention_scale": 1.0, "position_encoding": "relative", "relative_attention_per_layer": True},
        {"embedding_norm": True, "norm_eps": 1e-2},
        {"encoder_num_attention_heads": 2, "encoder_num_key_value_heads": 1},
        {"final_norm": False},
        {"final_norm": True, "norm_placement": "post"},
        {"gated_feed_forward": True, "hidden_act": "gelu"},
        {"head_dim": 12},
        {"hidden_act": "gelu_pytorch_tanh", "logits_bias": True},
        {"hidden_act": "silu", "scale_embedding": False},
        {"logits_scale": 0.25, "logits_bias": True},
        {"position_encoding": "sinusoidal", "position_offset": 1, "sinusoidal_endpoint": True},
        {"position_encoding": "sinusoidal", "position_offset": 2, "sinusoidal_endpoint": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
    ids=describe,
)
def test_single_options(options: dict[str, Any], tmp_path: Path) -> None:
    model = written(tiny(**options), tmp_path)
    assert_engine_writes_the_same(model, tmp_path / "engine")
    found, _ = read_ctranslate2(tmp_path / "engine")
    assert_same_state(found, model)
    assert {name: getattr(found.config, name) for name in options} == options


def test_what_comes_back_otherwise(tmp_path: Path) -> None:
    """The engine has no norm without a bias, and no rows before position 0: it gets zeros, and the rows that count."""
    options: dict[str, Any] = {"norm_bias": False, "position_encoding": "learned", "position_offset": 2}
    model = written(tiny(**options), tmp_path)
    assert_engine_writes_the_same(model, tmp_path / "engine")
    found, _ = read_ctranslate2(tmp_path / "engine")
    assert (found.config.norm_bias, found.config.position_offset) == (True, 0)
    ids, labels = torch.tensor([[5, 9, 12]]), torch.tensor([[7, 4]])
    torch.testing.assert_close(found(ids, labels=labels).logits, model(ids, labels=labels).logits)


def test_what_the_engine_cannot_express_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="position_encoding='alibi': the engine has ALiBi in decoders only"):
        written(tiny(position_encoding="alibi"), tmp_path)
    assert not (tmp_path / "engine").exists()
    normed = tiny(position_encoding="learned", embedding_norm=True, norm_before_positions=True)
    assert find_unsupported(normed) == ["norm_before_positions=True: the engine adds positions before the norm"]
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    assert "rope_type='yarn'" in find_unsupported(tiny(rope_parameters=yarn))[0]

    class OldEncoder:
        def __init__(self, num_layers: int, num_heads: int, pre_norm: bool, **_: Any) -> None: ...

    monkeypatch.setitem(ctranslate2_writer._SPECS, "encoder", OldEncoder)
    reasons = find_unsupported(tiny(position_encoding="alibi", encoder_num_key_value_heads=2))
    assert len(reasons) == 2
    assert "alibi" in reasons[0]
    assert "num_heads_kv" in reasons[1]


class TwoVocabularies(PreTrainedTokenizer):  # type: ignore[misc]
    """As FSMT's and Marian's: what is read has ids of one, what is written of the other."""

    encoder: ClassVar = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "hund": 4, "katze": 5}

    @property
    def vocab_size(self) -> int:
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.encoder)

    def _convert_token_to_id(self, token: str) -> int:
        return self.encoder.get(token, 3)

    def _convert_id_to_token(self, index: int) -> str:
        return ["<s>", "<pad>", "</s>", "<unk>", "cat", "dog"][index]


def test_a_tokenizer_that_tells_one_of_its_vocabularies_is_refused() -> None:
    with pytest.raises(ValueError, match="its TwoVocabularies reads ids by one vocabulary and writes them by another"):
        tokens_of(TwoVocabularies(unk_token="<unk>"))


def test_a_folder_without_a_tokenizer_is_not_for_the_engine(tmp_path: Path) -> None:
    build(tiny()).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"ours has no tokenizer, and the engine's folders name every token"):
        write_ctranslate2(tmp_path / "ours", tmp_path / "engine")


def test_a_tokenizer_may_have_no_name_for_the_end(tmp_path: Path) -> None:
    """As those of BERT's kind, with which Chinese BART models come: it is the configuration's."""
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(30))]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    model = build(tiny(vocab_size=len(tokens), bos_token_id=1))
    for part in (model, PreTrainedTokenizerFast(tokenizer_object=words, **named)):
        part.save_pretrained(tmp_path / "ours")
    write_ctranslate2(tmp_path / "ours", tmp_path / "engine")
    said = json.loads((tmp_path / "engine" / "config.json").read_text("utf-8"))
    assert (said["bos_token"], said["eos_token"]) == ("[CLS]", "[SEP]")
    assert_engine_writes_the_same(model, tmp_path / "engine")


def test_int8_of_ours_is_written_as_what_it_stands_for(tmp_path: Path) -> None:
    model = quantize(written(tiny(), tmp_path))
    model.save_pretrained(tmp_path / "ours")
    write_ctranslate2(tmp_path / "ours", tmp_path / "int8")
    found, _ = read_ctranslate2(tmp_path / "int8")
    inputs = batch(tiny())
    torch.testing.assert_close(found(**inputs).logits, model.dequantize()(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_what_may_not_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = written(tiny(), tmp_path)
    assert "suppress_sequences" not in caplog.text
    names = engine_tokens(tmp_path / "engine")[1]
    engine, rows = ctranslate2.Translator(str(tmp_path / "engine")), [[names[i] for i in (4, 8, 12, 2)]]
    lengths = {"max_decoding_length": 20, "min_decoding_length": 20}
    first = engine.translate_batch(rows, **lengths)[0].hypotheses[0][0]
    second = engine.translate_batch(rows, suppress_sequences=[[first]], **lengths)[0].hypotheses[0][0]
    banned = [names.index(first), names.index(second)]
    model.generation_config.update(bad_words_ids=[banned[:1], [5, 6]], suppress_tokens=banned[1:])
    model.save_pretrained(tmp_path / "ours")
    write_ctranslate2(tmp_path / "ours", tmp_path / "again")
    forbidden = [[first], [names[5], names[6]], [second]]
    assert f"pass suppress_sequences={forbidden} to translate_batch" in caplog.text
    found = engine.translate_batch(rows, suppress_sequences=forbidden, **lengths)[0].hypotheses[0]
    assert not {first, second} & {*found}


def test_the_engines_own_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``import dragoman`` is enough, in Python and for the engine's command."""
    written(tiny(), tmp_path)
    with pytest.raises(FileExistsError, match="exists"):
        write_ctranslate2(tmp_path / "ours", tmp_path / "engine")
    TransformersConverter(str(tmp_path / "ours")).convert(str(tmp_path / "api"))
    arguments = ["ct2-transformers-converter", "--model", tmp_path / "ours", "--output_dir", tmp_path / "command"]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    main()
    expected = (tmp_path / "engine" / "model.bin").read_bytes()
    assert all((tmp_path / folder / "model.bin").read_bytes() == expected for folder in ("api", "command"))


def test_neither_import_nor_reading_needs_the_engine(tmp_path: Path) -> None:
    written(tiny(), tmp_path)
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "ctranslate2" else find(name, *package)
import dragoman
from dragoman.conversion.ctranslate2_reader import read_ctranslate2
model, tokenizer = read_ctranslate2({str(tmp_path / "engine")!r})
assert model.num_parameters() and tokenizer and "ctranslate2" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Files that are old, or broken


def write_old(folder: Path, variables: dict[str, Tensor], source: list[str], target: list[str], **header: Any) -> None:
    """Version 2 of the format, before types and aliases."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value.encode()) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", header.get("version", 2)), text(header.get("specification", "TransformerBase"))]
    parts.append(struct.pack("<II", header.get("revision", 2), len(variables)))
    for name, value in variables.items():
        parts += [text(name), struct.pack("<B", value.dim()), struct.pack(f"<{value.dim()}I", *value.shape)]
        parts += [struct.pack("<BI", value.element_size(), value.numel()), value.contiguous().numpy().tobytes()]
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(b"".join(parts))
    (folder / "source_vocabulary.txt").write_text("\n".join(source) + "\n", "utf-8")
    (folder / "target_vocabulary.txt").write_text("\n".join(target) + "\n", "utf-8")


SOURCE = ["<blank>", "<s>", "</s>", "der", "Hund"]
TARGET = ["<blank>", "<s>", "</s>", "a", "dog", "the"]


@pytest.fixture
def old_variables(tmp_path: Path) -> dict[str, Tensor]:
    """Of a post-norm model with one vocabulary a side, ``<unk>`` behind each, as revision 4 names them."""
    vocabularies = {"vocab_size": 7, "source_vocab_size": 6, "share_embeddings": False}
    config = tiny(**vocabularies, norm_placement="post", position_encoding="sinusoidal")
    tokenizer = DragomanTokenizer.train(
        ["der Hund"], ["a dog the"], vocab_size=7, algorithm="word", byte_fallback=False, share_vocabulary=False
    )
    for part in (build(config), tokenizer):
        part.save_pretrained(tmp_path / "ours")
    write_ctranslate2(tmp_path / "ours", tmp_path / "engine")
    _, _, variables = read_variables(tmp_path / "engine" / "model.bin")
    heads = variables.pop("encoder/num_heads")
    del variables["decoder/num_heads"], variables["encoder/pre_norm"], variables["decoder/pre_norm"]
    variables = {name.replace("embeddings_0", "embeddings"): value for name, value in variables.items()}
    return variables | {"num_heads": heads.to(torch.int8), "pre_norm": torch.tensor(0, dtype=torch.int8)}


def test_old_files(old_variables: dict[str, Tensor], tmp_path: Path) -> None:
    """Attributes of both sides at once, flags that are settings today, integers without a scale."""
    weight = old_variables["decoder/layer_0/ffn/linear_0/weight"]
    flags = {name: torch.tensor(1, dtype=torch.int8) for name in ("with_source_bos", "with_source_eos")}
    integers = {"decoder/layer_0/ffn/linear_0/weight": (weight * 1000).round().to(torch.int16)}
    write_old(tmp_path / "old", {**old_variables, **flags, **integers}, SOURCE, TARGET, revision=4)
    model, tokenizer = read_ctranslate2(tmp_path / "old")
    assert (model.config.norm_placement, model.config.encoder_num_attention_heads) == ("post", 4)
    torch.testing.assert_close(model.model.decoder.layers[0].feed_forward.up_proj.weight, weight, rtol=0, atol=5e-4)
    assert tokenizer.convert_ids_to_tokens(tokenizer("der Hund bellt").input_ids) == [
        *("<s>", "der", "Hund", "<unk>", "</s>")
    ]
    assert tokenizer.decode(tokenizer(text_target="the dog").input_ids, skip_special_tokens=True) == "the dog"
    engine = translator(tmp_path / "old")
    batch = tokenizer("Hund der", text_target="a dog the", return_tensors="pt")
    arguments = ([["Hund", "der"]], [["a", "dog", "the"]], batch["input_ids"], batch["labels"])
    assert differences(engine, model, *arguments) < 1e-4


def test_tokens_that_do_not_tell_how_text_is_cut(old_variables: dict[str, Tensor], tmp_path: Path) -> None:
    write_old(tmp_path / "old", old_variables, [*SOURCE[:4], " Hund"], TARGET, revision=4)
    assert read_ctranslate2(tmp_path / "old")[1] is None


def test_a_foreign_tokenizer_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tiny(vocab_size=28), tmp_path)
    foreign = DragomanTokenizer.train(["other words"], vocab_size=12, algorithm="char", byte_fallback=False)
    foreign.save_pretrained(tmp_path / "engine")
    _, tokenizer = read_ctranslate2(tmp_path / "engine")
    assert "has other tokens than the model there" in caplog.text
    assert tokenizer.get_vocab() == DragomanTokenizer.from_pretrained(tmp_path / "ours").get_vocab()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/alibi": torch.tensor(1, dtype=torch.int8)}, "ALiBi stands on the side of the decoder"),
        ({"decoder/start_from_zero_embedding": torch.tensor(1, dtype=torch.int8)}, "a vector of zeros"),
        ({"encoder/activation": torch.tensor(5, dtype=torch.int8)}, "the activation number 5"),
        ({"decoder/sliding_window": torch.tensor(4, dtype=torch.int8)}, "no option for decoder/sliding_window"),
        ({"encoder/layer_1/mystery": torch.ones(2)}, "there is no place for encoder/layer_1/mystery"),
        ({"encoder/layer_1/ffn/linear_0/weight": None}, "encoder/layer_1/ffn/linear_0/weight is missing"),
        ({"encoder/layer_0/ffn/layer_norm/gamma": torch.ones(3)}, r"has shape \[3\] instead of \[32\]"),
        ({"decoder/projection/weight": torch.ones(9, 32)}, "has 9 rows for 7 target tokens"),
        ({"decoder/embeddings/weight": None}, "no variable 'decoder/embeddings/weight'"),
        ({"num_heads": torch.tensor(3, dtype=torch.int8)}, "not a multiple"),
        ({"decoder/scale_embeddings": torch.tensor(3.0)}, "multiplies embeddings by 3.0"),
        ({"encoder/position_encodings/encodings": torch.ones(9, 32)}, "one side has a table|the number of positions"),
    ],
)
def test_other_models(old_variables: dict[str, Tensor], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    variables = {name: value for name, value in {**old_variables, **change}.items() if value is not None}
    write_old(tmp_path / "old", variables, SOURCE, TARGET, revision=4)
    with pytest.raises(ValueError, match=message):
        read_ctranslate2(tmp_path / "old")


def test_all_reasons_together(old_variables: dict[str, Tensor], tmp_path: Path) -> None:
    more = {"decoder/alibi": torch.tensor(1, dtype=torch.int8), "encoder/mystery": torch.ones(2)}
    write_old(tmp_path / "old", {**old_variables, **more}, SOURCE, TARGET, revision=4)
    with pytest.raises(ValueError, match=r"ALiBi.*no place for encoder/mystery"):
        read_ctranslate2(tmp_path / "old")


def test_broken_files(old_variables: dict[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    write_old(folder, old_variables, SOURCE, TARGET, revision=4)
    assert is_ctranslate2_folder(folder)
    whole = (folder / "model.bin").read_bytes()
    for length in range(30, len(whole), 997):
        (folder / "model.bin").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut short or broken|does not end"):
            read_ctranslate2(folder)
    (folder / "model.bin").write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="goes on for 1 bytes"):
        read_ctranslate2(folder)
    at = whole.index(b"decoder/embeddings/weight\0") + 26  # rank, then two sizes
    (folder / "model.bin").write_bytes(whole[: at + 1] + b"\xff" * 8 + whole[at + 9 :])
    with pytest.raises(ValueError, match="do not fill its shape"):
        read_ctranslate2(folder)
    (folder / "model.bin").write_bytes(b"PK\x03\x04 a pickle")
    assert not is_ctranslate2_folder(folder)
    with pytest.raises(ValueError, match="not a file of CTranslate2"):
        read_ctranslate2(folder)
    (folder / "model.bin").unlink()
    assert not is_ctranslate2_folder(folder)
    with pytest.raises(FileNotFoundError, match=r"no model\.bin"):
        read_ctranslate2(folder)


def test_broken_vocabularies_and_settings(old_variables: dict[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    cases: list[tuple[list[str], list[str], str]] = [
        (SOURCE[:-1], TARGET, "has 6 rows for 5 source tokens"),
        ([*SOURCE[:-1], "der"], TARGET, "each of them once"),
        (["<x>", *SOURCE[1:]], TARGET, "needs a token for padding"),
        (SOURCE, ["<blank>", "<s>", "<x>", *TARGET[3:]], "'</s>', is not in the target vocabulary"),
    ]
    for source, target, message in cases:
        write_old(folder, old_variables, source, target, revision=4)
        with pytest.raises(ValueError, match=message):
            read_ctranslate2(folder)
    write_old(folder, old_variables, SOURCE, TARGET, revision=4)
    (folder / "config.json").write_text('{"layer_norm_epsilon": "small"}')
    with pytest.raises(ValueError, match="layer_norm_epsilon must not be 'small'"):
        read_ctranslate2(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_ctranslate2(folder)
    (folder / "config.json").unlink()
    (folder / "target_vocabulary.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no target_vocabulary"):
        read_ctranslate2(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 9}, "version 9 of the format; 2 to 6 are known"),
        ({"specification": "WhisperSpec"}, "The model is 'WhisperSpec'"),
        ({"revision": 1}, "revision 1;"),
    ],
)
def test_other_headers(old_variables: dict[str, Tensor], tmp_path: Path, header: Any, message: str) -> None:
    write_old(tmp_path / "old", old_variables, SOURCE, TARGET, **header)
    with pytest.raises(ValueError, match=message):
        read_ctranslate2(tmp_path / "old")
