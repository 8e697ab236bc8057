"""Conversion as a whole: folders, the command line, what is refused, and what is left behind (nothing)."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ctranslate2.converters import TransformersConverter
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    MBart50Tokenizer,
    NllbTokenizer,
)
from typer.testing import CliRunner

import bart_models
from dragoman import DragomanForConditionalGeneration, DragomanTokenizer
from dragoman.__main__ import app
from dragoman.conversion import ConversionError, convert_from, convert_to, folders
from dragoman.conversion.folders import convert_folder
from dragoman.conversion.probes import ask, compare
from ladder import assert_same_weights
from support import ROOT, build, tiny
from test_conversion_marian import marian


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = marian(vocab_size=97)
    model.generation_config = GenerationConfig(
        num_beams=3, pad_token_id=56, decoder_start_token_id=56, eos_token_id=[0, 9]
    )
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


class TestFolders:
    def test_there_and_back(self, source: Path, tmp_path: Path) -> None:
        before = digest(source)
        conversion = convert_folder(source, tmp_path / "ours")
        assert (conversion.source, conversion.target) == ("marian", "dragoman")
        assert conversion.comparison.tokens == 3 * 63  # max_position_embeddings leave room for 63
        assert conversion.comparison.holds
        ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
        assert isinstance(ours, DragomanForConditionalGeneration)
        assert ours.generation_config.num_beams == 3
        assert ours.generation_config.eos_token_id == [0, 9]
        convert_folder(tmp_path / "ours", tmp_path / "theirs", "marian")
        theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
        assert_same_weights(theirs, AutoModelForSeq2SeqLM.from_pretrained(source))
        assert theirs.generation_config.eos_token_id == [0, 9]
        assert digest(source) == before

    def test_a_family_without_a_start_token(self, tmp_path: Path) -> None:
        bart_models.tiny("Pegasus").save_pretrained(tmp_path / "source")
        assert "bos_token_id" not in json.loads((tmp_path / "source" / "config.json").read_text())
        assert convert_folder(tmp_path / "source", tmp_path / "ours").comparison.holds

    def test_several_ends(self, tmp_path: Path) -> None:
        bart_models.tiny("Bart", eos_token_id=[2, 5]).save_pretrained(tmp_path / "source")
        assert convert_folder(tmp_path / "source", tmp_path / "ours").comparison.holds
        assert GenerationConfig.from_pretrained(tmp_path / "ours").eos_token_id == [2, 5]

    def test_a_model_and_its_folder_give_the_same(self, source: Path) -> None:
        in_memory = convert_from(AutoModelForSeq2SeqLM.from_pretrained(source))
        on_disk = convert_from(source)
        assert_same_weights(on_disk, in_memory)
        assert on_disk.config.to_dict() == in_memory.config.to_dict()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_shards_of_half_precision(self, dtype: torch.dtype, tmp_path: Path) -> None:
        theirs = marian().to(dtype)
        theirs.save_pretrained(tmp_path / "source", max_shard_size="30KB")
        assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
        ours = convert_from(tmp_path / "source")
        assert ours.dtype == dtype
        assert_same_weights(ours, convert_from(theirs))

    def test_training_leaves_the_source_alone(self, source: Path) -> None:
        """Tensors may lie in the file's own pages."""
        before, theirs = digest(source), AutoModelForSeq2SeqLM.from_pretrained(source)
        weights = theirs.state_dict()["model.shared.weight"].clone()
        for ours in (convert_from(source), convert_from(theirs)):
            with torch.no_grad():
                for parameter in ours.parameters():
                    parameter.zero_()
        torch.testing.assert_close(theirs.state_dict()["model.shared.weight"], weights, rtol=0, atol=0)
        assert digest(source) == before

    def test_without_generation_settings_those_of_the_configuration_count(self, source: Path) -> None:
        (source / "generation_config.json").unlink()
        settings = convert_from(source).generation_config
        assert (settings.decoder_start_token_id, settings.eos_token_id, settings.forced_eos_token_id) == (56, 0, 0)

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read off /proc")
    def test_one_copy_of_the_weights_at_a_time(self, tmp_path: Path) -> None:
        """Each tensor of 40 MB, of which there are two: half a copy more than the model is allowed for the rest."""
        marian(vocab_size=80_000, d_model=128, share_encoder_decoder_embeddings=False).save_pretrained(tmp_path / "a")
        script = """if True:
            import sys
            from pathlib import Path
            from dragoman.conversion.folders import convert_folder

            def peak():
                status = Path("/proc/self/status").read_text()
                return int(status.split("VmHWM:")[1].split()[0]) / 1024

            import dragoman.conversion.folders, transformers.models.marian.modeling_marian, transformers.generation.utils
            before = peak()
            convert_folder(Path(sys.argv[1]), Path(sys.argv[2]))
            print(peak() - before)
        """
        paths = [str(tmp_path / "a"), str(tmp_path / "b")]
        grown = float(subprocess.run([sys.executable, "-c", script, *paths], check=True, stdout=subprocess.PIPE).stdout)
        size = (tmp_path / "b" / "model.safetensors").stat().st_size / 2**20
        assert size > 75
        assert grown < 1.7 * size


class TestTokenizers:
    def test_theirs_travels_unchanged(self, source: Path, tmp_path: Path) -> None:
        """NLLB's: language codes around the source, and as the first token of the target."""
        vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "ab"])}
        tokenizer = NllbTokenizer(
            vocab=vocabulary, merges=[("▁", "a"), ("a", "b")], src_lang="eng_Latn", tgt_lang="fra_Latn"
        )
        tokenizer.save_pretrained(source)
        convert_folder(source, tmp_path / "ours")
        before = digest(source)
        for name, value in digest(tmp_path / "ours").items():
            if "token" in name:
                assert before[name] == value, name
        loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
        assert type(loaded) is NllbTokenizer
        assert loaded("ab a", text_target="b a") == tokenizer("ab a", text_target="b a")
        assert loaded.convert_tokens_to_ids("fra_Latn") == tokenizer.convert_tokens_to_ids("fra_Latn")
        assert "AutoTokenizer" in (tmp_path / "ours" / "README.md").read_text("utf-8")

    def test_a_class_that_only_the_model_told_is_added(self, source: Path, tmp_path: Path) -> None:
        """As in the published OPUS-MT folders; without it, AutoTokenizer would take Dragoman's own."""
        (source / "tokenizer_config.json").write_text('{"source_lang": "en", "target_lang": "de"}')
        (source / "source.spm").write_bytes(b"\x00\x01")
        (source / "run.py").write_text("raise SystemExit")
        (source / "pytorch_model.bin").write_bytes(b"\x80")
        convert_folder(source, tmp_path / "ours")
        fields = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
        assert fields == {"source_lang": "en", "target_lang": "de", "tokenizer_class": "MarianTokenizer"}
        assert (tmp_path / "ours" / "source.spm").read_bytes() == b"\x00\x01"
        assert not (tmp_path / "ours" / "run.py").exists()
        assert not (tmp_path / "ours" / "pytorch_model.bin").exists()

    def test_a_class_that_the_configuration_names_is_the_one(self, tmp_path: Path) -> None:
        """mBART-50's tokenizer puts the language in front, mBART's behind, and both have the same model."""
        tokenizer = MBart50Tokenizer(src_lang="en_XX", tgt_lang="de_DE")
        theirs = bart_models.tiny("MBart", vocab_size=len(tokenizer), tokenizer_class="MBart50Tokenizer")
        for part in (theirs, tokenizer):
            part.save_pretrained(tmp_path / "theirs")
        file = tmp_path / "theirs" / "tokenizer_config.json"
        for unnamed in ({"tokenizer_class": None}, {}):
            named = json.loads(file.read_text("utf-8"))
            named.pop("tokenizer_class", None)
            file.write_text(json.dumps({**named, **unnamed}), "utf-8")
            ours = tmp_path / f"ours{len(unnamed)}"
            convert_folder(tmp_path / "theirs", ours)
            found, expected = (AutoTokenizer.from_pretrained(folder) for folder in (ours, tmp_path / "theirs"))
            assert type(found) is type(expected) is MBart50Tokenizer
            assert found("_").input_ids == expected("_").input_ids

    def test_a_folder_of_old_names_no_class_at_all(self, tmp_path: Path) -> None:
        bart_models.tiny("Bart").save_pretrained(tmp_path / "source")
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"adgo"]
        (tmp_path / "source" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (tmp_path / "source" / "merges.txt").write_text("#version: 0.2\n")
        before = AutoTokenizer.from_pretrained(tmp_path / "source")
        convert_folder(tmp_path / "source", tmp_path / "ours")
        after = AutoTokenizer.from_pretrained(tmp_path / "ours")
        assert type(after) is type(before)
        assert after("a <mask> dog</s>") == before("a <mask> dog</s>")

    def test_ours_goes_along_to_other_families(self, source: Path, tmp_path: Path) -> None:
        convert_folder(source, tmp_path / "ours")
        tokenizer = DragomanTokenizer.train(["ab ba", "aa"], ["xy yx", "xx"], vocab_size=300)
        tokenizer.save_pretrained(tmp_path / "ours")
        convert_folder(tmp_path / "ours", tmp_path / "theirs", "marian")
        loaded = AutoTokenizer.from_pretrained(tmp_path / "theirs")
        assert loaded("ab", text_target="xy") == tokenizer("ab", text_target="xy")


class TestTheCard:
    def test_says_what_was_verified_until_the_weights_change(self, source: Path, tmp_path: Path) -> None:
        convert_folder(source, tmp_path / "ours")
        card = ModelCard.load(tmp_path / "ours" / "README.md")
        assert card.data["dragoman"]["conversion"]["source"] == "marian"
        assert "189 of 189 greedily generated tokens are the same" in card.text
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
        model.save_pretrained(tmp_path / "ours")
        assert "Converted from" in (tmp_path / "ours" / "README.md").read_text("utf-8")
        torch.nn.init.zeros_(model.model.encoder.layers[0].self_attn.q_proj.weight)
        model.save_pretrained(tmp_path / "ours")
        assert "Converted from" not in (tmp_path / "ours" / "README.md").read_text("utf-8")

    def test_is_bound_to_the_converted_weights_from_the_start(self, source: Path, tmp_path: Path) -> None:
        """Those that are trained and saved over them are others, even if nothing was saved between."""
        convert_folder(source, tmp_path / "ours")
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
        torch.nn.init.zeros_(model.model.encoder.layers[0].self_attn.q_proj.weight)
        model.save_pretrained(tmp_path / "ours")
        assert "Converted from" not in (tmp_path / "ours" / "README.md").read_text("utf-8")

    def test_stays_where_no_weights_are_seen(self, source: Path, tmp_path: Path) -> None:
        """As where a tokenizer alone is pushed, beside the repository's card."""
        convert_folder(source, tmp_path / "ours")
        (tmp_path / "alone").mkdir()
        shutil.copy(tmp_path / "ours" / "README.md", tmp_path / "alone")
        tokenizer = DragomanTokenizer.train(["ab ba", "aa"], ["xy yx", "xx"], vocab_size=300)
        tokenizer.save_pretrained(tmp_path / "alone")
        assert "Converted from" in (tmp_path / "alone" / "README.md").read_text("utf-8")


class TestRefusals:
    def test_a_folder_without_safetensors(self, source: Path) -> None:
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
        with pytest.raises(OSError, match=r"no model.safetensors.*pass the model itself to convert_from"):
            convert_from(source)

    def test_unknown_families(self) -> None:
        with pytest.raises(ConversionError, match=r"'bert': known are .*marian"):
            convert_from(BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)))
        with pytest.raises(ConversionError, match="it is Dragoman's own"):
            convert_from(build(tiny()))
        with pytest.raises(ConversionError, match="'gpt2': known are"):
            convert_to(build(tiny()), "gpt2")
        with pytest.raises(ConversionError, match="convert_to takes a Dragoman model"):
            convert_to(marian(), "marian")

    def test_all_that_a_family_lacks_together(self) -> None:
        with pytest.raises(ConversionError) as error:
            convert_to(build(tiny(norm_type="rms_norm", gated_feed_forward=True)), "marian")
        for problem in ("norm_type='rms_norm'; marian has 'layer_norm' only", "gated_feed_forward=True", "'rotary'"):
            assert problem in str(error.value)

    def test_an_activation_that_ours_lacks(self) -> None:
        theirs = marian()
        theirs.config.activation_function = "tanh"
        with pytest.raises(ConversionError, match="hidden_act"):
            convert_from(theirs)

    def test_a_table_that_holds_no_sinusoids(self, source: Path) -> None:
        theirs = marian()
        with torch.no_grad():
            theirs.model.encoder.embed_positions.weight[3].add_(0.1)
        with pytest.raises(ConversionError, match=r"encoder.embed_positions.weight holds no sinusoids"):
            convert_from(theirs)


def test_what_pipelines_put_before_a_text_goes_along(tmp_path: Path) -> None:
    theirs = marian(vocab_size=97)
    theirs.config.prefix = "translate: "
    theirs.config.task_specific_params = {"translation_en_to_de": {"prefix": "translate English to German: "}}
    theirs.save_pretrained(tmp_path / "theirs")
    convert_from(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    for config in (
        convert_from(theirs).config,
        AutoConfig.from_pretrained(tmp_path / "ours"),
        convert_to(tmp_path / "ours", "marian").config,
    ):
        assert config.prefix == theirs.config.prefix
        assert config.task_specific_params == theirs.config.task_specific_params


class TestTheCommandLine:
    def run(self, *arguments: Any) -> Any:
        return CliRunner().invoke(app, ["convert", *map(str, arguments)])

    def test_converts_and_says_what_it_verified(self, source: Path, tmp_path: Path) -> None:
        result = self.run(source, tmp_path / "ours")
        assert result.exit_code == 0, result.output
        assert "marian -> dragoman" in result.output
        assert "189 of 189 generated tokens are the same" in result.output

    @pytest.mark.parametrize("case", ["here", "link", "link to nothing"])
    def test_into_an_empty_folder(
        self, case: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where somebody stands, or a link leads: the folder stays the one that it was."""
        folder, target = tmp_path / "empty", Path(".") if case == "here" else tmp_path / "link"
        if case != "link to nothing":
            folder.mkdir()
        if case == "here":
            monkeypatch.chdir(folder)
        else:
            target.symlink_to(folder)
        before = folder.stat().st_ino if folder.exists() else None
        result = self.run(source, target)
        assert result.exit_code == 0, result.output
        assert before in (None, folder.stat().st_ino)
        assert_same_weights(AutoModelForSeq2SeqLM.from_pretrained(folder), convert_from(source))
        assert "# empty" in (folder / "README.md").read_text("utf-8")
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    @pytest.mark.parametrize(
        "case", ["missing", "there already", "same kind", "another family", "no family", "wrong size", "cut off"]
    )
    def test_on_any_error_nothing_is_left(self, case: str, source: Path, tmp_path: Path) -> None:
        target, options, message = tmp_path / "target", [], ""
        if case == "missing":
            source, message = tmp_path / "nowhere", "is not a folder"
        elif case == "there already":
            target, message = source, "is there already"
        elif case == "same kind":
            options, message = ["--to", "bart"], "is not a Dragoman model"
        elif case == "another family":
            BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(source)
            message = "known are"
        elif case == "no family":
            (source / "config.json").write_text("{}")
            message = "model_type"
        elif case == "wrong size":
            fields = json.loads((source / "config.json").read_text("utf-8"))
            (source / "config.json").write_text(json.dumps(fields | {"d_model": "many"}))
            message = "d_model"
        else:
            content = (source / "model.safetensors").read_bytes()
            (source / "model.safetensors").write_bytes(content[:-40])
            message = "model.safetensors"
        before = sorted(path.name for path in tmp_path.iterdir())
        result = self.run(source, target, *options)
        assert result.exit_code == 1
        assert message in result.output.replace("\n", " ")
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_how_the_checkpoint_would_write_is_no_concern(self, source: Path, tmp_path: Path) -> None:
        """What is compared is what the models compute; the settings go along."""
        own = {"num_beams": 4, "num_return_sequences": 4, "return_dict_in_generate": True, "guidance_scale": 1.5}
        GenerationConfig(**own, decoder_start_token_id=2, stop_strings=["x"]).save_pretrained(source)
        result = self.run(source, tmp_path / "ours")
        assert result.exit_code == 0, result.output
        carried = GenerationConfig.from_pretrained(tmp_path / "ours")
        assert {name: getattr(carried, name) for name in own} == own

    def test_a_missing_package_is_said_in_one_line(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def needs_more(*_: Any) -> None:
            raise ImportError("the tokenizer requires sentencepiece")

        monkeypatch.setattr(folders, "copy_tokenizer", needs_more)
        result = self.run(source, tmp_path / "target")
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
        assert "the tokenizer requires sentencepiece" in result.output
        assert not (tmp_path / "target").exists()

    def test_two_models_that_differ_are_seen(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong(folder: Path) -> DragomanForConditionalGeneration:
            model = convert_from(folder)
            torch.nn.init.zeros_(model.model.decoder.layers[1].cross_attn.o_proj.bias)
            return model

        monkeypatch.setattr(folders, "convert_from", wrong)
        result = self.run(source, tmp_path / "target")
        assert result.exit_code == 1
        assert "do not compute the same" in result.output
        assert not (tmp_path / "target").exists()


def test_the_documents_commands_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "conversion.md").read_text("utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    marian(vocab_size=97).save_pretrained("opus-mt-en-de")
    tokenizer = DragomanTokenizer.train(["ab ba", "aa"], vocab_size=300)
    build(tiny(vocab_size=len(tokenizer))).save_pretrained("mine"), tokenizer.save_pretrained("mine")
    convert_folder(Path("mine"), Path("engine-model"), "ctranslate2")
    for commands in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for command in commands.strip().splitlines():
            result = CliRunner().invoke(app, command.removeprefix("python -m dragoman ").split())
            assert result.exit_code == 0, (command, result.output)
        Path("my-model").rename(tempfile.mkdtemp(dir=tmp_path) + "/my-model")  # the next block makes its own


class TestTheEngine:
    """CTranslate2's format by the command; its contents are looked at in test_ctranslate2."""

    def test_out_and_in_again(self, tmp_path: Path) -> None:
        tokenizer = DragomanTokenizer.train(["ab ba", "aa"], vocab_size=300)
        model = build(tiny(vocab_size=len(tokenizer), position_encoding="sinusoidal"))
        model.save_pretrained(tmp_path / "ours"), tokenizer.save_pretrained(tmp_path / "ours")
        assert convert_folder(tmp_path / "ours", tmp_path / "engine", "ctranslate2").comparison is None
        assert (tmp_path / "engine" / "model.bin").is_file()
        result = CliRunner().invoke(app, ["convert", str(tmp_path / "engine"), str(tmp_path / "again")])
        assert result.exit_code == 0, result.output
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(convert_from(tmp_path / "engine").state_dict(), model.state_dict(), rtol=0, atol=0)
        assert AutoTokenizer.from_pretrained(tmp_path / "again")("ab ba") == tokenizer("ab ba")

    def test_nothing_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError("No space left on device")

        def half(_: Any, to: str, **__: Any) -> None:
            Path(to).mkdir()
            Path(to, "model.bin").touch()
            full()

        tokenizer = DragomanTokenizer.train(["ab"], vocab_size=300)
        model = build(tiny(vocab_size=len(tokenizer), position_encoding="sinusoidal"))
        model.save_pretrained(tmp_path / "ours"), tokenizer.save_pretrained(tmp_path / "ours")
        (tmp_path / "engine").mkdir()  # empty, so it will do
        with monkeypatch.context() as patched:
            patched.setattr(TransformersConverter, "convert", half)
            with pytest.raises(OSError, match="No space left"):
                convert_folder(tmp_path / "ours", tmp_path / "engine", "ctranslate2")
        assert not list((tmp_path / "engine").iterdir())
        convert_folder(tmp_path / "ours", tmp_path / "engine", "ctranslate2")
        with pytest.raises(ConversionError, match="engine is of CTranslate2 already"):
            convert_folder(tmp_path / "engine", tmp_path / "again", "ctranslate2")
        monkeypatch.setattr(DragomanTokenizer, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            convert_folder(tmp_path / "engine", tmp_path / "again")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "ours"]

    def test_what_it_lacks_is_said(self, tmp_path: Path) -> None:
        tokenizer = DragomanTokenizer.train(["ab"], vocab_size=300)
        model = build(tiny(vocab_size=len(tokenizer), position_encoding="alibi"))
        model.save_pretrained(tmp_path / "ours"), tokenizer.save_pretrained(tmp_path / "ours")
        with pytest.raises(ConversionError, match="the engine has ALiBi in decoders only"):
            convert_folder(tmp_path / "ours", tmp_path / "engine", "ctranslate2")
        assert not (tmp_path / "engine").exists()


def test_the_probes_see_tokens_and_logits() -> None:
    model = marian(vocab_size=97).eval()
    answers = ask(model, 97, 97, 63)
    assert compare(answers, answers).holds
    assert len({tuple(row) for row in answers.tokens.tolist()}) == 3, "all sources are written alike"
    model.final_logits_bias[0, 5] += 1.0
    assert not compare(ask(model, 97, 97, 63), answers).holds
