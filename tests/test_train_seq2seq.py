"""The training script: from files of every kind to a checkpoint, scores and predictions; and what it says to bad data."""

import csv
import gzip
import importlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EvalPrediction,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

import dragoman
from support import ROOT, build, data_folder

PAIRS = [("Hallo", "HALLO"), ("zwei  Worte", "ZWEI  WORTE"), ('ein "Zitat", ja', 'EIN "ZITAT", JA'), ("ß ü", "ẞ Ü")]
TINY = ["--preset", "tiny", "--algorithm", "char", "--byte_fallback", "false", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("train_seq2seq")


@pytest.fixture(scope="module")
def data(script: ModuleType) -> ModuleType:
    return importlib.import_module("seq2seq_data")


def words(count: int, seed: int) -> list[tuple[str, str]]:
    """Words and their capitals, lengths mixed."""
    generator = random.Random(seed)
    drawn = ["".join(generator.choices("abcd", k=generator.randint(1, 5))) for _ in range(count)]
    return [(word, word.upper()) for word in drawn]


def write_tsv(path: Path, pairs: list[tuple[str, str]]) -> str:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments for a training file and a validation file."""
    train, valid = write_tsv(tmp_path / "train.tsv", words(64, 0)), write_tsv(tmp_path / "valid.tsv", words(9, 1))
    return ["--train_file", train, "--validation_file", valid, "--per_device_train_batch_size", "8"]


def test_from_tsv_to_a_checkpoint_with_scores_and_predictions(script: ModuleType, tmp_path: Path) -> None:
    # few enough to be learned by heart in seconds
    dictionary = [(source, " ".join(target)) for source, target in words(24, 0)]
    test = dictionary[4:]
    arguments = {
        "train_file": write_tsv(tmp_path / "train.tsv", 16 * dictionary),
        "validation_file": write_tsv(tmp_path / "valid.tsv", dictionary[:20]),
        "test_file": write_tsv(tmp_path / "test.tsv", test),
        "output_dir": str(tmp_path / "out"),
        "learning_rate": "5e-3",
        "max_steps": "120",
        "num_beams": "2",
        "max_target_length": "16",
        "eval_strategy": "steps",
        "eval_steps": "60",
    }
    command = [sys.executable, str(ROOT / "examples" / "train_seq2seq.py"), "--do_train", "--do_eval", "--do_predict"]
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    done = subprocess.run([*command, *TINY, *flags], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_exact_match"] >= 80
    assert results["eval_chrf"] > 80
    assert results["eval_bleu"] > 80
    assert results["eval_bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_bleu" in entry] == [60, 120]
    assert min(entry["eval_exact_match"] for entry in history if entry["step"] == 120 and "eval_bleu" in entry) >= 80

    # in the order of the file, although the longest was predicted first; and the checkpoint loads as any other
    predictions = (tmp_path / "out" / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(tokenizer, dragoman.DragomanTokenizer)
    assert model.generation_config.num_beams == 2
    batch = tokenizer([source for source, _ in test], padding=True, return_tensors="pt")
    assert predictions == tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
    exact = np.mean([line == target for line, (_, target) in zip(predictions, test, strict=True)])
    assert results["predict_exact_match"] == pytest.approx(100 * exact)

    given = ["--model_name_or_path", str(tmp_path / "out"), "--test_file", arguments["test_file"], "--num_beams", "2"]
    script.main(["--do_predict", *given, "--output_dir", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "all_results.json").read_text())
    assert again["predict_bleu"] == results["predict_bleu"]
    assert (tmp_path / "again" / "generated_predictions.txt").read_text().splitlines() == predictions


def save_all_forms(folder: Path) -> dict[str, dict[str, Any]]:
    """PAIRS in every form that can be read, as arguments of `read_pairs` or `read_split`."""
    write_tsv(folder / "plain.tsv", PAIRS)
    with gzip.open(folder / "plain.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{source}\t{target}\r\n" for source, target in PAIRS)
    write_tsv(folder / "header.tsv", [("id\tgross", "klein"), *((f"1\t{target}", source) for source, target in PAIRS)])
    with (folder / "table.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("target", "source"), *((target, source) for source, target in PAIRS)])
    records = [{"source": source, "target": target} for source, target in PAIRS]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + "\n")
    (folder / "klein.txt").write_text("".join(f"{source}\n" for source, _ in PAIRS), encoding="utf-8")
    with gzip.open(folder / "gross.de.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{target}\n" for _, target in PAIRS)
    DatasetDict(validation=Dataset.from_list(records)).save_to_disk(folder / "saved")
    (folder / "loose").mkdir()
    (folder / "loose" / "validation.jsonl").write_text((folder / "records.jsonl").read_text())
    (folder / "tables").mkdir()
    (folder / "tables" / "validation.csv").write_bytes((folder / "table.csv").read_bytes())
    return {
        "tsv": {"path": "plain.tsv"},
        "tsv.gz": {"path": "plain.tsv.gz"},
        "tsv with header": {"path": "header.tsv", "columns": ("klein", "gross")},
        "csv": {"path": "table.csv"},
        "jsonl": {"path": "records.jsonl"},
        "parallel": {"path": "klein.txt", "target_path": "gross.de.gz"},
        "saved": {"folder": "saved", "split": "validation"},
        "loose": {"folder": "loose", "split": "validation"},
        "tables": {"folder": "tables", "split": "validation"},
    }


def test_every_form_of_file_gives_the_same_pairs(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = save_all_forms(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, arguments in forms.items():
        read = data.read_split if "folder" in arguments else data.read_pairs
        pairs = read(**arguments)
        assert list(zip(pairs["source"], pairs["target"], strict=True)) == PAIRS, name


def test_a_line_end_within_csv_quotes_belongs_to_the_text(data: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('source,target\n"a\nb",c\n')
    assert data.read_pairs(str(tmp_path / "x.csv"))["source"] == ["a\nb"]


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.tsv", b"", r"x\.tsv: the file is empty"),
    "header alone": ("x.csv", b"source,target\n", r"x\.csv: no pairs in it"),
    "not utf-8": ("x.tsv", b"a\tb\n\xff\xfe\tb\n", r"x\.tsv:2: not UTF-8"),
    "empty side": ("x.tsv", b"a\tb\na\t \n\tb\n", r"x\.tsv:2: source or target is empty \(rows like this: 2\)"),
    "one column": (
        "x.tsv",
        b"a\tb\nab\n",
        r"x\.tsv:2: 1 column\(s\) where at least 2 are needed: source, tab, target; plain",
    ),
    "missing column": ("x.csv", b"source,ziel\na,b\n", r"x\.csv:1: no column 'target'; the columns are source, ziel"),
    "open quote": ("x.csv", b'source,target\n"a,b\n', r"x\.csv:2: not CSV"),
    "missing key": ("x.jsonl", b'{"source": "a"}\n', r"x\.jsonl:1: no column 'target'; the columns are source"),
    "no json": ("x.jsonl", b'{"source": "a", "target": "b"}\n{"sour\n', r"x\.jsonl:2: not a JSON object"),
    "json list": ("x.jsonl", b'["a", "b"]\n', r"x\.jsonl:1: not a JSON object"),
    "json number": ("x.jsonl", b'{"source": "a", "target": 1}\n', r"x\.jsonl:1: the target is not a string but 1"),
    "json null": ("x.jsonl", b'{"source": "a", "target": null}\n', r"x\.jsonl:1: source or target is empty"),
    "suffix": ("x.xlsx", b"a\tb\n", r"x\.xlsx: unknown suffix; known are \.tsv, "),
    "blank csv": ("x.csv", b"\n\n", r"x\.csv: no pairs in it"),
    "half a character": ("x.jsonl", b'{"source": "a\\ud800", "target": "b"}\n', r"x\.jsonl:1: the text holds U\+D800"),
    "not gzip": ("x.tsv.gz", b"a\tb\n", r"x\.tsv\.gz: not a whole gzip file"),
    "cut gzip": ("x.tsv.gz", gzip.compress(b"a\tb\n" * 99)[:-9], r"x\.tsv\.gz: not a whole gzip file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_named_with_file_and_line(case: str, script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    """Even in the file that is needed last."""
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        script.main(["--do_train", "--do_predict", *files, "--test_file", str(tmp_path / name), *TINY])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((b"a\nb\n", b"A\n"), r"x\.de ends after 1 lines, .*x\.en goes on: the files are not parallel"),
        ((b"a\n", b"A\nB\n"), r"x\.en ends after 1 lines, .*x\.de goes on"),
        ((b"a\nb\n", b"A\n\n"), r"x\.de:2: source or target is empty"),
        ((b"a\n\n", b"A\nB\n"), r"x\.en:2: source or target is empty"),
    ],
)
def test_parallel_files_must_be_parallel(
    lines: tuple[bytes, bytes], message: str, data: ModuleType, tmp_path: Path
) -> None:
    for suffix, content in zip(("en", "de"), lines, strict=True):
        (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.read_pairs(str(tmp_path / "x.en"), str(tmp_path / "x.de"))


@pytest.mark.parametrize("rows", [["null,NA", "nan,N/A"], ["007,1", "2,03.0"]])
def test_a_table_in_a_folder_holds_texts(rows: list[str], data: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("\n".join(["source,target", *rows]))
    pairs = data.read_split(str(tmp_path), "train")
    assert [f"{source},{target}" for source, target in zip(pairs["source"], pairs["target"], strict=True)] == rows


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_quotes_in_a_folder_of_tsv_are_characters(suffix: str, data: ModuleType, tmp_path: Path) -> None:
    """As in a TSV file by itself: one that is not closed swallows no rows."""
    texts = [
        ("source", "target"),
        ("He said:", '"Komm'),
        ("three", "drei"),
        ('and "go".', 'und geh."'),
        ("end", "Ende"),
    ]
    opened = gzip.open if suffix.endswith(".gz") else open
    with opened(tmp_path / f"train{suffix}", "wt", encoding="utf-8") as file:
        file.write("".join(f"{source}\t{target}\n" for source, target in texts))
    pairs = data.read_split(str(tmp_path), "train")
    assert list(zip(pairs["source"], pairs["target"], strict=True)) == texts[1:]


def test_a_broken_file_in_a_folder(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"source": "a", "target": "b"}\n{"source"\n')
    with pytest.raises(SystemExit, match=r"data: .*(JSON|Missing)"):
        script.main(["--do_train", "--dataset", str(tmp_path / "data"), *TINY])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to do: pass --do_train"),
        (["--do_train"], "--do_train needs --train_file or --dataset"),
        (["--do_eval"], "--do_eval needs --validation_file or --dataset"),
        (["--do_train", "--train_file", "nowhere.tsv"], r"nowhere\.tsv: No such file"),
        (["--do_train", "--dataset", "nowhere"], "nowhere: no such folder"),
        (["--do_eval", "{valid}", "--num_beams", "0"], "--num_beams must be at least 1, not 0"),
        (["--do_eval", "{valid}", "--max_eval_samples", "0"], "--max_eval_samples must be at least 1, not 0"),
        (["--do_eval", "{valid}", "--bleu_tokenize", "13"], "--bleu_tokenize 13: choose from .*13a"),
        (
            ["--do_eval", "{valid}", "--bleu_tokenize", "ja-mecab"],
            r"--bleu_tokenize ja-mecab: .*pip install sacrebleu\[ja\]",
        ),
        (["--do_train", "--dataset", "{saved}"], "no split 'train'; there are validation"),
        (["--do_eval", "--dataset", "{saved}", "--source_column", "en", "--target_column", "de"], "no column 'en'"),
        (["--do_eval", "{valid}", "--source_column", "en"], "Name both --source_column and --target_column"),
        (["--do_eval", "{valid}", "--model_name_or_path", "nowhere"], "nowhere: no such folder"),
        (["--do_train", "{train}", "--resume_from_checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--do_train", "{train}", "--tokenizer_name_or_path", "nowhere"], "nowhere: no such folder"),
        (["--do_eval", "{valid}"], "Without --do_train there must be a --model_name_or_path"),
        (
            ["--do_train", "{train}", "--max_target_length", "1"],
            "All 64 training pairs are longer than 256 source or 1",
        ),
        (
            ["--do_train", "{train}", "--config_overrides", "position_encoding=learned,max_position_embeddings=200"],
            "--max_source_length 256: the model has 200 positions; pass --max_source_length 200",
        ),
        (
            ["--do_train", "{train}", "--preset", "transformer_base", "--max_target_length", "2000"],
            "--max_target_length 2000: the model has 1024 positions",
        ),
        (["--do_train", "{train}", "--vocab_size", "2"], "vocab_size=2 is too small"),
        (["--do_train", "{train}", "--tokens_per_batch", "0"], "train_seq2seq: tokens_per_batch=0"),
        (["--do_train", "{train}", "--max_minutes", "-1"], "train_seq2seq: max_minutes=-1"),
        (["--do_train", "{train}", "--moving_average", "1.5"], r"train_seq2seq: decay=1\.5 must be between 0 and 1"),
        (
            [
                "--do_train",
                "{train}",
                "--moving_average",
                "0.9",
                "--load_best_model_at_end",
                "true",
                "--eval_strategy",
                "steps",
            ],
            "--load_best_model_at_end would end with a checkpoint, not with --moving_average",
        ),
        (["--do_train", "{train}", "--teachers", "nowhere"], "nowhere: no such folder"),
        (["--do_train", "{train}", "--teacher_weight", "0"], r"train_seq2seq: teacher_weight=0\.0 must be above 0"),
        (["--do_train", "{train}", "--resume_from_checkpoint", "true"], "true: .* has no checkpoint"),
        (["--do_train", "{train}", "--preset", "smal"], "There is no preset 'smal'"),
        (["--do_train", "{train}", "--config_overrides", "dropuot=0.2"], "Did you mean dropout"),
        (["--do_train", "{train}", "--config_overrides", "dropout"], "'dropout' is not of the form name=value"),
        (["--do_train", "{train}", "--config_overrides", "dropout=2"], "dropout is a probability"),
        (["--do_train", "{train}", "--config_overrides", "dropout=null"], "dropout.* expected float, got NoneType"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    arguments: list[str], message: str, script: ModuleType, tmp_path: Path, files: list[str]
) -> None:
    saved = tmp_path / "saved"
    if "{saved}" in arguments:
        DatasetDict(validation=Dataset.from_dict({"source": ["a"], "target": ["b"]})).save_to_disk(saved)
    known = {"{saved}": [str(saved)], "{train}": files[:2], "{valid}": files[2:4]}
    parsed = [part for argument in arguments for part in known.get(argument, [argument])]
    with pytest.raises(SystemExit, match=message):
        script.main([*TINY, "--output_dir", str(tmp_path / "out"), *parsed])


def test_resuming_ends_where_an_unbroken_run_ends(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    run = [*TINY, *files, "--do_train", "--max_steps", "12", "--save_steps", "5", "--save_total_limit", "3"]
    whole = script.main([*run, "--output_dir", str(tmp_path / "whole")])
    run += ["--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-5")]
    resumed = script.main([*run, "--vocab_size", "9", "--output_dir", str(tmp_path / "rest")])  # the tokenizer is there
    assert resumed.state.global_step == 12
    assert (tmp_path / "rest" / "checkpoint-10").exists()
    with pytest.raises(SystemExit, match=r"checkpoint-12 is of a run before: name a new --output_dir, or --resume"):
        script.main([*run[:-2], "--output_dir", str(tmp_path / "rest")])
    again = script.main([*run[:-1], "true", "--max_steps", "13", "--output_dir", str(tmp_path / "rest")])
    assert again.state.global_step == 13
    last = ["--do_eval", "--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "rest")]
    read = script.main([*TINY, *files[2:4], *last]).model  # nothing is trained: what training ended with is read
    assert read.name_or_path == str(tmp_path / "rest")
    (tmp_path / "rest" / "config.json").unlink()  # as where it was broken off
    assert script.main([*TINY, *files[2:4], *last]).model.name_or_path == str(tmp_path / "rest" / "checkpoint-13")
    for name, weight in whole.model.named_parameters():
        torch.testing.assert_close(resumed.model.get_parameter(name), weight, msg=name)


@pytest.mark.parametrize(("warmup", "peak"), [("0.1", 3), ("5", 5)])
def test_training_stops_in_time_and_the_learning_rate_reaches_its_end(
    warmup: str, peak: int, script: ModuleType, tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1000))  # every look at the clock finds it a second later
    monkeypatch.setattr("dragoman.wall_clock.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    run = ["--do_train", "--num_train_epochs", "500", "--max_minutes", "0.5", "--warmup_steps", warmup]
    trainer = script.main([*TINY, *files, *run, "--logging_steps", "1", "--output_dir", str(tmp_path / "out")])
    assert trainer.state.global_step == 30
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    top = rates.index(max(rates))
    assert abs(top - peak) <= 1
    assert rates[1] < 0.5e-3
    assert max(rates) > 9e-4
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 2e-5


def test_batches_by_tokens(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    run = ["--do_train", "--do_eval", "--num_train_epochs", "2", "--tokens_per_batch", "60"]
    trainer = script.main([*TINY, *files, *run, "--output_dir", str(tmp_path / "out")])
    assert type(trainer) is dragoman.DragomanTrainer
    sides = [sum(map(len, trainer.train_dataset[name])) for name in ("input_ids", "labels")]
    assert 2 * sum(sides) / 60 < trainer.state.global_step < 2 * 2 * sum(sides) / 60
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_loss"] > 0


def test_muon(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    trainer = script.main(
        [*TINY, *files, "--do_train", "--muon", "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    )
    assert isinstance(trainer.optimizer.optimizer, dragoman.MuonAdamW)


@pytest.mark.parametrize(("asked", "beams", "early"), [(None, 5, True), ("1", 1, False), ("3", 3, True)])
def test_a_checkpoint_that_writes_by_beams(
    asked: str | None, beams: int, early: bool, script: ModuleType, tmp_path: Path, files: list[str]
) -> None:
    """As the families that are converted do; transformers saves no setting of beam search beside num_beams=1."""
    tokenizer = dragoman.DragomanTokenizer.train(["abcd", "ABCD"], algorithm="char", byte_fallback=False, vocab_size=40)
    model = build(dragoman.DragomanConfig.from_tokenizer(tokenizer, preset="tiny"))
    model.generation_config.update(num_beams=5, early_stopping=True, length_penalty=2.0)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "start")
    run = [*files, "--do_train", "--do_eval", "--max_steps", "1", "--max_target_length", "8", "--disable_tqdm", "true"]
    run += ["--num_beams", asked] if asked else []
    script.main([*run, "--model_name_or_path", str(tmp_path / "start"), "--output_dir", str(tmp_path / "out")])
    for folder in ("out", "out/checkpoint-1"):
        saved = GenerationConfig.from_pretrained(tmp_path / folder)
        assert (saved.num_beams, saved.early_stopping) == (beams, early)
        assert saved.length_penalty == (2.0 if early else 1.0)


def test_what_was_cut_off_is_not_resumed(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    run = [*TINY, *files, "--do_train", "--max_steps", "4", "--save_steps", "2", "--output_dir", str(tmp_path / "out")]
    whole = script.main(run).model
    last = tmp_path / "out" / "checkpoint-4"
    for name in ("trainer_state.json", "optimizer.pt"):
        (last / name).unlink()
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "out" / "checkpoint-kept")  # by hand
    resumed = script.main([*run, "--resume_from_checkpoint", "true"])
    assert (last / "trainer_state.json").is_file()
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(resumed.model.get_parameter(name), weight, rtol=0, atol=0, msg=name)
    for folder in tmp_path.glob("out/checkpoint-[0-9]"):
        (folder / "trainer_state.json").unlink()
    with pytest.raises(SystemExit, match=r"checkpoint-4 was cut off while it was written, and there is none before it"):
        script.main([*run, "--resume_from_checkpoint", "true"])


def test_teachers(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    """What they read and write goes for the student, whatever its own data would give."""
    run = [*TINY, *files, "--do_train", "--max_steps", "2", "--separate_vocabularies", "--output_dir"]
    alone = script.main([*run, str(tmp_path / "alone")])
    assert getattr(alone, "teachers", None) is None
    few = write_tsv(tmp_path / "few.tsv", [("ab", "A"), ("ba", "BA")])
    other = [*run, str(tmp_path / "other"), "--train_file", few, "--teachers", str(tmp_path / "alone")]
    taught = script.main([*other, str(tmp_path / "alone"), "--teacher_weight", "0.7"])
    assert (len(taught.teachers.models), taught.teachers.weight) == (2, 0.7)
    assert taught.processing_class.target_vocab_size == alone.processing_class.target_vocab_size > 6
    script.main([*run, str(tmp_path / "small"), "--train_file", few])
    with pytest.raises(SystemExit, match=r"--teachers: .*alone has another vocabulary than the model"):
        script.main(
            [*run, "out", "--model_name_or_path", str(tmp_path / "small"), "--teachers", str(tmp_path / "alone")]
        )


def test_any_tokenizer_with_pad_and_end_will_do(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "</s>", "<pad>", *"abcdefABCDEF"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    given = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    given.save_pretrained(tmp_path / "given")
    run = ["--do_train", "--do_eval", "--max_steps", "2", "--tokenizer_name_or_path", str(tmp_path / "given")]
    trainer = script.main(
        [*TINY, *files, *run, "--output_dir", str(tmp_path / "out"), "--config_overrides", "dropout=0"]
    )
    assert trainer.model.config.vocab_size == len(vocabulary)
    assert trainer.model.config.decoder_start_token_id == vocabulary["<pad>"]
    assert all(labels[-1] == vocabulary["</s>"] for labels in trainer.train_dataset["labels"])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == vocabulary


def test_a_tokenizer_that_is_not_the_model_s(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    trained, other, extended = (str(tmp_path / name) for name in ("trained", "other", "extended"))
    script.main([*TINY, *files, "--do_train", "--max_steps", "1", "--output_dir", trained])
    run = [*TINY, *files, "--do_eval", "--model_name_or_path", trained, "--output_dir", str(tmp_path / "out")]
    dragoman.DragomanTokenizer.train(
        ["fed"], ["FED"], algorithm="char", vocab_size=99, byte_fallback=False
    ).save_pretrained(other)
    with pytest.raises(SystemExit, match=r"--tokenizer_name_or_path: '.' is token \d+ there, and \d+ of the model in"):
        script.main([*run, "--tokenizer_name_or_path", other])
    tokenizer = AutoTokenizer.from_pretrained(trained)
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(extended)
    with pytest.raises(SystemExit, match=f"The tokenizer's '<new>' is source token {size}, and the model has {size}"):
        script.main([*run, "--tokenizer_name_or_path", extended])
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    model.resize_token_embeddings(size + 1)
    model.save_pretrained(trained)
    script.main([*run, "--tokenizer_name_or_path", extended])


def test_an_int8_model_is_refused(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    folder = str(tmp_path / "int8")
    trainer = script.main([*TINY, *files, "--do_train", "--max_steps", "1", "--output_dir", folder])
    dragoman.quantize(trainer.model).save_pretrained(folder)
    with pytest.raises(SystemExit, match="A Trainer takes no int8 model, not even to evaluate"):
        script.main([*TINY, *files, "--do_eval", "--model_name_or_path", folder, "--output_dir", str(tmp_path / "out")])


def test_an_end_is_put_where_there_is_none(data: ModuleType) -> None:
    """mBART's stands before a language."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "<pad>": 2, "de": 3, "a": 4}, unk_token="<unk>"))
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    pairs = Dataset.from_dict({"source": ["a"], "target": ["a"]})
    for template, expected in (("$A", [4, 1]), ("$A </s>", [4, 1]), ("$A </s> de", [4, 1, 3])):
        special = [("</s>", 1), ("de", 3)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        assert data.encode_for_training(pairs, tokenizer, 9, 9)["labels"] == [expected]


def test_a_checkpoint_is_continued_or_only_evaluated(script: ModuleType, tmp_path: Path, files: list[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run = [*TINY, *files, "--do_eval", "--save_strategy", "no", "--max_steps", "3"]
    script.main([*run, "--do_train", "--separate_vocabularies", "--target_vocab_size", "7", "--output_dir", str(first)])
    script.main([*run, "--model_name_or_path", str(first), "--output_dir", str(second)])
    before, after = (json.loads((folder / "eval_results.json").read_text()) for folder in (first, second))
    assert after["eval_loss"] == pytest.approx(before["eval_loss"])
    overrides = ["--config_overrides", "dropout=0.25"]
    trainer = script.main(
        [*run, *overrides, "--do_train", "--model_name_or_path", str(first), "--output_dir", str(second)]
    )
    assert trainer.model.config.dropout == 0.25
    assert trainer.model.config.vocab_size == 7
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]
    with pytest.raises(SystemExit, match="configuration has no dropuot"):
        script.main([*run, "--model_name_or_path", str(first), "--config_overrides", "dropuot=1"])


def test_long_pairs_do_not_train_and_are_counted_once(data: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = dragoman.DragomanTokenizer.train(["abc"], vocab_size=300, algorithm="char")
    pairs = Dataset.from_dict({"source": ["ab", "abcabc", "a"], "target": ["a", "a", "abcabc"]})
    caplog.set_level("WARNING", "train_seq2seq")
    assert data.encode_for_training(pairs, tokenizer, 4, 5)["source"] == ["ab"]
    assert caplog.messages == ["Left out 2 of 3 training pairs: longer than 4 source or 5 target tokens."]

    encoded = data.encode_for_evaluation(pairs, tokenizer, 5, 5, "test")
    assert encoded["row"] == [1, 0, 2]  # nothing is left out; the longest first
    whole = tokenizer("abcabc")["input_ids"]
    assert encoded["input_ids"][0] == [*whole[:4], tokenizer.eos_token_id]
    assert caplog.messages[1:] == ["Cut 1 of 3 test sources to 5 tokens."]


def test_scores_are_against_the_file_and_not_the_labels(script: ModuleType, data: ModuleType, tmp_path: Path) -> None:
    tokenizer = dragoman.DragomanTokenizer.train(["x y"], vocab_size=8, algorithm="word", byte_fallback=False)
    pairs = Dataset.from_dict({"source": ["x", "y x"], "target": ["y", "x unseen"]})
    encoded = data.encode_for_evaluation(pairs, tokenizer, 9, 9, "test")
    scorer = script.Scorer(tokenizer, encoded, "none")
    width = max(map(len, encoded["labels"]))
    labels = np.array([ids + [-100] * (width - len(ids)) for ids in encoded["labels"]])
    assert scorer(EvalPrediction(labels, labels))["exact_match"] == 50
    repeated = np.concatenate([labels, labels[:1]])  # as several processes do
    assert scorer(EvalPrediction(repeated, repeated))["exact_match"] == 50

    scorer.decode = lambda _: ["two\nlines", "one"]  # of rows 1 and 0
    scorer.write(tmp_path / "predictions.txt", None)
    assert (tmp_path / "predictions.txt").read_text() == "one\ntwo\\nlines\n"


@pytest.mark.slow
def test_multi30k(script: ModuleType, tmp_path: Path) -> None:
    folder = data_folder("multi30k")
    parts = {"train_file": "train.en", "train_target_file": "train.de"}
    parts |= {"validation_file": "val.en", "validation_target_file": "val.de"}
    files = [part for name, file in parts.items() for part in (f"--{name}", str(folder / f"{file}.gz"))]
    limits = ["--max_target_length", "40", "--max_steps", "30", "--max_eval_samples", "50", "--vocab_size", "4000"]
    run = ["--do_train", "--do_eval", "--preset", "tiny", "--learning_rate", "5e-3", "--output_dir", str(tmp_path)]
    trainer = script.main([*files, *limits, *run])
    assert trainer.model.config.vocab_size == 4000
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["eval_loss"] < 6.5  # ln 4000 = 8.3
