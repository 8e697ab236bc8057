"""Folders that are broken or mean harm: a clear error, at once, without much memory; never random weights.

Every case loads under a limit of address space a little above what the process holds, so that a large allocation fails
the case, and has to raise within a second of processor time.
"""

import contextlib
import json
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedConfig

from dragoman import (
    DragomanConfig,
    DragomanEncoderModel,
    DragomanForConditionalGeneration,
    DragomanModel,
    DragomanTokenizer,
)
from support import batch, build, tiny

MEGABYTE = 2**20
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass
class Case:
    """What is done to a copy of which folder, and what the error has to say."""

    name: str
    folder: str
    change: Callable[[Path], object]
    message: str
    load: Any = AutoModelForSeq2SeqLM


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text("utf-8"))
        (folder / file).write_text(json.dumps({**content, **changes}), "utf-8")

    return change


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def config_cases() -> Iterator[Case]:
    own = {field.name for field in fields(DragomanConfig)} - {field.name for field in fields(PreTrainedConfig)}
    wrong: dict[str, list[Any]] = {name: ["x", [1], {"a": 1}] for name in sorted(own)}
    wrong["dragoman_version"] = [3, [1], {"a": 1}]
    wrong |= {
        "architectures": ["x", 5, {"a": 1}, [1]],
        "attn_implementation": [5, "evil/kernel", "nonsense"],
        "_attn_implementation": ["evil/kernel", {"": "evil/kernel"}],
        "chunk_size_feed_forward": ["x", [1]],
        "custom_pipelines": [5, {"t": {"impl": "e/r--x.Y"}}, {"t": 3}],
        "dtype": ["x", "load", 5, [], {}, "int64"],
        "id2label": ["x", [1], {"a": "b"}, {"0": 5}],
        "is_encoder_decoder": ["x", False],
        "label2id": [5, {"a": "b"}],
        "num_labels": ["x", None, -1, 10**9, 10**30],
        "output_attentions": ["x", 5],
        "output_hidden_states": ["x", 5],
        "problem_type": [5, ["x"]],
        "quantization_config": ["x", [1]],
        "return_dict": ["x", 5],
        "torch_dtype": ["x", "int8"],
    }
    huge = [field.name for field in fields(DragomanConfig) if field.type in (int, int | None) and field.name in own]
    for name in huge:
        wrong[name] += [-1, 10**9, 10**30, 1.5]
    for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
        wrong[name] += [-0.1, 1, 1e300, float("nan"), 10**400]
    for name in ("norm_eps", "attention_scale", "logits_scale", "initializer_range"):
        wrong[name] += [-1, 0, float("nan"), float("inf"), 10**400]
    wrong["rope_parameters"] += [
        {"rope_type": "evil", "rope_theta": 1e4},
        {"rope_type": "default", "rope_theta": "x"},
        {"rope_type": "default", "rope_theta": -1},
        {"rope_type": "default", "rope_theta": float("nan")},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"},
        {"rope_type": "yarn", "rope_theta": 1e4},
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0},
        {"rope_type": ["default"], "rope_theta": 1e4},
    ]
    for name, values in wrong.items():
        for value in values:
            yield Case(f"{name}={value!r:.30}", "rotary", edit("config.json", **{name: value}), name)
    for name in ("hiden_size", "transformers_weights", "sub_configs", "per_layer_config", "rope_theta", "num_beams"):
        yield Case(f"unknown {name}", "rotary", edit("config.json", **{name: 1}), f"no field '{name}'")
    table = edit("config.json", max_position_embeddings=2**24)
    yield Case("a table too large", "sinusoidal", table, "needs a table of more than")
    references = "../evil.X", "/etc/x.X", "evil/repo--x.Y", "a.b.C", "x", "", "..", "x.Y/../Z", ["x.Y", None], 5, None
    for reference in references:
        for auto in ("AutoConfig", "AutoModelForSeq2SeqLM"):
            change = edit("config.json", auto_map={auto: reference})
            # transformers looks into AutoConfig's before we do
            message = rf"auto_map\['{auto}'\] points outside|argument of type '(int|NoneType)' is not iterable"
            yield Case(f"{auto} at {reference!r}", "rotary", change, message)
    for text in ('{"a":', "", "\x00\xff", "[" * 100_000):
        yield Case(
            f"config.json {text!r:.9}", "rotary", write("config.json", text), "not a valid JSON|not JSON|recursion"
        )
    yield Case("config.json []", "rotary", write("config.json", "[]"), "Unrecognized model")


def weight_cases(weights: dict[str, torch.Tensor], size: int) -> Iterator[Case]:
    def replace(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
        def rewrite(folder: Path) -> None:
            content = load_file(folder / WEIGHTS)
            change(content)
            save_file(content, folder / WEIGHTS, metadata={"format": "pt"})

        return rewrite

    for key, value in weights.items():
        lose = replace(lambda content, key=key: content.pop(key))
        yield Case(f"without {key}", "sinusoidal", lose, f"lacks {re.escape(key)}")
        other = torch.zeros(value.shape[0] + 1, *value.shape[1:])
        swell = replace(lambda content, key=key, other=other: content.update({key: other}))
        yield Case(f"other {key}", "sinusoidal", swell, rf"other shapes.*{re.escape(key)} \({value.shape[0] + 1},")
    yield Case("no weights at all", "sinusoidal", replace(dict.clear), "lacks .* and [0-9]+ more")
    for length in (0, 1, 7, 8, 9, 100, size // 2, size - 1):
        cut = lambda folder, length=length: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])  # noqa: E731
        yield Case(f"cut at {length}", "sinusoidal", cut, f"{WEIGHTS} (is cut off|has {length} bytes)")
    for length in (2**31, 2**40, 2**63, 2**64 - 1):
        start = length.to_bytes(8, "little") + b"{}" * 100
        yield Case(f"header of {length}", "sinusoidal", write(WEIGHTS, start), "cut off, or is no safetensors")
    for header in (b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": [0, 1e99]}}', b"[" * 100_000, b"\xff\xfe"):
        content = len(header).to_bytes(8, "little") + header
        yield Case(f"header {header[:20]!r}", "sinusoidal", write(WEIGHTS, content), f"{WEIGHTS} (is no safetens|has )")
    yield Case("pickle in disguise", "sinusoidal", lambda f: torch.save({}, f / WEIGHTS), "no safetensors file")
    yield Case("no file", "sinusoidal", lambda f: (f / WEIGHTS).unlink(), f"no file named {WEIGHTS}")

    def only_a_pickle(folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    yield Case("only a pickle", "sinusoidal", only_a_pickle, f"no file named {WEIGHTS}")


def index_cases() -> Iterator[Case]:
    def shard(folder: Path) -> Path:
        return sorted(folder.glob("*.safetensors"))[1]

    def lose_a_key(folder: Path) -> None:
        content = load_file(shard(folder))
        content.pop(sorted(content)[0])
        save_file(content, shard(folder), metadata={"format": "pt"})

    yield Case("shard gone", "sharded", lambda f: shard(f).unlink(), "model-00002-of-.* is missing")
    yield Case(
        "shard cut", "sharded", lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-1]), "model-00002-of-.* has"
    )
    yield Case("shard lacks a key", "sharded", lose_a_key, "lacks model")
    for name in ("../x.safetensors", "/etc/passwd", "x.bin", "C:\\x.safetensors", "", 5, None, "a/b.safetensors"):
        change = edit(INDEX, weight_map={"lm_head.weight": name})
        yield Case(f"index names {name!r}", "sharded", change, f"{INDEX} names")
    for content in ({"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": 5}, {"metadata": 5}):
        yield Case(f"index {content}", "sharded", edit(INDEX, **content), "must hold metadata and a weight_map")
    for text in ("{", "", "[]", "5", "\x00"):
        yield Case(f"index {text!r}", "sharded", write(INDEX, text), f"{INDEX} (is not JSON|must hold a JSON object)")
    for text in ("{", "[]", '{"eos_token_id": "x", "num_beams": -4, "max_new_tokens": "y"}'):
        file = "generation_config.json"
        yield Case(f"generation {text!r:.9}", "rotary", write(file, text), f"{file} is broken")


def tokenizer_cases() -> Iterator[Case]:
    for file in ("tokenizer.json", "target_tokenizer.json"):
        for text in ("", "{", "[]", "{}", '{"model": 5}', "\x00"):
            yield Case(f"{file} {text!r}", "two", write(file, text), f"{file} is no vocabulary", AutoTokenizer)
    yield Case("one missing", "two", lambda f: (f / "target_tokenizer.json").unlink(), "is missing", AutoTokenizer)
    extra = lambda f: shutil.copy(f / "tokenizer.json", f / "target_tokenizer.json")  # noqa: E731
    yield Case("one too many", "one", extra, "belongs to another tokenizer", AutoTokenizer)
    wrong: dict[str, list[Any]] = {
        "languages": [5, "de", [5], {"a": 1}, ["zz"]],
        "target_language": [5, "zz", ["a"]],
        "split_special_tokens": ["x", 5],
        "separate_vocabularies": ["x", 5],
        "model_max_length": ["x", -1, 0, [], True],
        "padding_side": ["x"],
        "truncation_side": ["x"],
        "clean_up_tokenization_spaces": ["x"],
        "auto_map": [{"AutoTokenizer": ["../x.Y", None]}, {"AutoTokenizer": [None, "e/r--x.Y"]}, {"AutoTokenizer": 5}],
    }
    for name, values in wrong.items():
        for value in values:
            change = edit("tokenizer_config.json", **{name: value})
            message = {"languages": "language", "target_language": "unknown language"}.get(name, name)
            message = {"padding_side": "Padding side", "truncation_side": "Truncation side"}.get(name, message)
            yield Case(f"{name}={value!r}", "one", change, message, AutoTokenizer)
    for text in ("{", "", "[]", "5"):
        change = write("tokenizer_config.json", text)
        yield Case(
            f"tokenizer_config.json {text!r}",
            "one",
            change,
            "tokenizer_config.json (is not JSON|must hold)",
            DragomanTokenizer,
        )


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Any allocation of hundreds of megabytes fails, where the system can limit it."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    held = int(status.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + 512 * MEGABYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAGOMAN_EXPORT_CODE", "0")
        layers = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
        build(tiny(position_encoding="sinusoidal", **layers)).save_pretrained(root / "sinusoidal")
        build(tiny()).save_pretrained(root / "rotary")
        build(tiny()).save_pretrained(root / "sharded", max_shard_size="50KB")
        DragomanTokenizer.train(["a dog"], vocab_size=300, languages=["de"]).save_pretrained(root / "one")
        two = DragomanTokenizer.train(["a dog"], ["ein Hund"], vocab_size=300, share_vocabulary=False)
        two.save_pretrained(root / "two")
    return root


def refused(case: Case, originals: Path, folder: Path) -> str | None:
    """What went wrong with a case, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(originals / case.folder, folder)
    case.change(folder)
    started = time.process_time()
    try:
        with little_memory():
            case.load.from_pretrained(folder)
    except Exception as error:
        took = time.process_time() - started
        if not re.search(case.message, str(error), re.DOTALL) or isinstance(error, MemoryError):
            return f"{case.name}: {type(error).__name__}: {error!s:.300}"
        return f"{case.name}: {took:.1f} s" if took > 1 else None
    return f"{case.name}: loaded"


def every_case(originals: Path) -> dict[str, list[Case]]:
    weights = load_file(originals / "sinusoidal" / WEIGHTS)
    size = (originals / "sinusoidal" / WEIGHTS).stat().st_size
    return {
        "config": list(config_cases()),
        "weights": list(weight_cases(weights, size)),
        "index": list(index_cases()),
        "tokenizer": list(tokenizer_cases()),
    }


def test_there_are_many_cases(originals: Path) -> None:
    counts = {name: len(cases) for name, cases in every_case(originals).items()}
    assert sum(counts.values()) >= 400, counts


@pytest.mark.parametrize("kind", ["config", "weights", "index", "tokenizer"])
def test_each_is_refused(kind: str, originals: Path, tmp_path: Path) -> None:
    for folder in originals.iterdir():  # unchanged, each loads
        auto = AutoTokenizer if folder.name in ("one", "two") else AutoModelForSeq2SeqLM
        with little_memory():
            auto.from_pretrained(folder)
    cases = every_case(originals)[kind]
    wrong = [problem for case in cases if (problem := refused(case, originals, tmp_path / "folder")) is not None]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)


def test_what_may_be_new(tmp_path: Path) -> None:
    """A head on a saved body, a decoder beside a saved encoder; nothing of what was saved."""
    base, encoder = DragomanModel(tiny()), DragomanEncoderModel(tiny(share_embeddings=False))
    base.save_pretrained(tmp_path / "base")
    encoder.save_pretrained(tmp_path / "encoder")
    free = {"tie_word_embeddings": False}
    model = DragomanForConditionalGeneration.from_pretrained(tmp_path / "base", **free)
    torch.testing.assert_close(model.model.state_dict(), base.state_dict(), rtol=0, atol=0)
    model = DragomanForConditionalGeneration.from_pretrained(tmp_path / "encoder")
    torch.testing.assert_close(model.model.encoder.state_dict(), encoder.encoder.state_dict(), rtol=0, atol=0)
    for folder, owned in (("base", "decoder.norm.weight"), ("encoder", "encoder.norm.weight")):
        content = load_file(tmp_path / folder / WEIGHTS)
        content.pop(owned)
        save_file(content, tmp_path / folder / WEIGHTS, metadata={"format": "pt"})
        for cls in (DragomanModel, DragomanForConditionalGeneration):
            with pytest.raises(ValueError, match=f"lacks (model.)?{owned}, which Dragoman(Encoder)?Model owns"):
                cls.from_pretrained(tmp_path / folder)


@pytest.mark.parametrize("fields", [{}, {"share_embeddings": False}, {"share_embeddings": True}])
def test_a_tied_matrix_under_another_name(fields: dict[str, Any], tmp_path: Path) -> None:
    """``safetensors.torch.save_model`` keeps the first of its names in the alphabet."""
    config = tiny(**fields)
    model, inputs = build(config), batch(config)
    model.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / WEIGHTS), metadata={"format": "pt"})
    assert "lm_head.weight" in load_file(tmp_path / WEIGHTS)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    assert again.lm_head.weight is again.model.decoder.embed_tokens.weight


def test_untying_a_saved_tie_is_no_way_to_a_random_head(tmp_path: Path) -> None:
    build(tiny()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path, tie_word_embeddings=False)


def test_other_shapes_on_request(tmp_path: Path) -> None:
    build(tiny()).save_pretrained(tmp_path)
    options = {"decoder_intermediate_size": 56, "ignore_mismatched_sizes": True}
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, **options)
    assert model.model.decoder.layers[0].feed_forward.up_proj.weight.shape[0] == 56
