"""Score a checkpoint on a test file, and write down all that it answered.

    python examples/recipes/score.py runs/g2p g2p valid.tsv
    python examples/recipes/score.py runs/multi30k bleu test.en --references test.de --tokenized --lowercase
    python examples/recipes/score.py runs/ar2en transliteration eval.txt --num-beams 4
    python examples/recipes/score.py runs/g2p g2p valid.tsv --with runs/g2p-2 --with runs/g2p-3
    python examples/recipes/score.py runs/g2p g2p valid.tsv --backwards runs/g2p-turned
    python examples/recipes/score.py runs/sst2 classification dev.txt

Tasks and their files, each compressed or not:

- `g2p`: `WORD<TAB>PH PH PH`, a line a pronunciation. A word is right if it equals any of its pronunciations; phoneme
  errors count against the nearest one.
- `transliteration`: `source<TAB>target`. Word and character error rate.
- `bleu`: sources, a text a line, with `--references`; or `source<TAB>target`. sacreBLEU, with its signature.
- `classification`: `label text` or `label<TAB>text` a line; a first line `label<TAB>...` is a header. Accuracy.

Beside the scores there are `score.json` (with the SHA-256 of weights and data) and `nbest.tsv` (`row<TAB>rank<TAB>
score<TAB>text<TAB>source`) in `--output-dir`. `--with` scores what several write together; `--backwards` what they and
models that learnt targets turned round (turn_round.py) find likely together. Needs dragoman[examples].
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rapidfuzz.distance import Levenshtein
from sacrebleu import BLEU
from scored_files import Task, fail, read_test
from transformers import AutoConfig, pipeline
from writing import generate, generate_from_both_ends

import dragoman  # registers models and the pipeline

Scores = dict[str, Any]


def error_rates(
    answers: Sequence[str], references: Sequence[Sequence[str]], split: Callable[[str], Sequence[str]]
) -> tuple[float, float]:
    """In percent: answers that equal no reference; and edits against the nearest reference, by its length."""
    wrong = edits = length = 0
    for answer, ways in zip(answers, references, strict=True):
        symbols = split(answer)
        distance, size = min((Levenshtein.distance(symbols, split(way)), len(split(way))) for way in ways)
        wrong, edits, length = wrong + (distance > 0), edits + distance, length + size
    return 100 * wrong / len(answers), 100 * edits / length


def score(task: Task, answers: list[str], references: list[list[str]], tokenized: bool, lowercase: bool) -> Scores:
    if task == Task.CLASSIFICATION:
        right = sum(answer == labels[0] for answer, labels in zip(answers, references, strict=True))
        return {"accuracy": 100 * right / len(answers)}
    if task == Task.BLEU:
        metric = BLEU(tokenize="none" if tokenized else "13a", lowercase=lowercase, force=tokenized)
        targets = [ways[0] for ways in references]
        if tokenized:
            answers, targets = [join(text) for text in answers], [join(text) for text in targets]
        bleu = metric.corpus_score(answers, [targets])
        return {"bleu": bleu.score, "signature": str(metric.get_signature())}
    if task == Task.G2P:
        wer, per = error_rates(answers, references, str.split)
        return {"wer": wer, "per": per}
    wer, cer = error_rates(answers, references, list)
    return {"wer": wer, "cer": cer}


def join(text: str) -> str:
    """Subwords that `@@ ` cut apart, put together."""
    return text.replace("@@ ", "").removesuffix("@@")


def classify(checkpoint: Path, sources: list[str], batch_size: int) -> list[list[tuple[str, float]]]:
    saved = AutoConfig.from_pretrained(checkpoint).architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in saved):
        fail(f"{checkpoint} holds {' and '.join(saved) or 'no named model'}, which was not trained to classify.")
    pipe = pipeline("text-classification", model=str(checkpoint), top_k=None, batch_size=batch_size)
    names = {name: str(index) for name, index in (pipe.model.config.label2id or {}).items()}
    plain = all(name == f"LABEL_{index}" for name, index in names.items())  # nobody named them: the file has numbers
    rows = pipe(sources, truncation=True)
    return [[(names[r["label"]] if plain else r["label"], r["score"]) for r in row] for row in rows]


def sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A folder with model and tokenizer.")],
    task: Annotated[Task, typer.Argument()],
    testfile: Annotated[Path, typer.Argument(help="In the task's format, .gz or not.")],
    references: Annotated[
        Path | None, typer.Option(help="bleu: the targets, if testfile has the sources alone.")
    ] = None,
    tokenized: Annotated[bool, typer.Option(help="bleu: of tokenized text, whose `@@ ` are joined.")] = False,
    lowercase: Annotated[bool, typer.Option(help="bleu: letter case does not count.")] = False,
    others: Annotated[
        list[Path] | None, typer.Option("--with", help="A checkpoint that writes along. Repeat it for more.")
    ] = None,
    backwards: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that writes from the end. Repeat it for more.")
    ] = None,
    num_beams: Annotated[int, typer.Option(min=1)] = 5,
    nbest: Annotated[int, typer.Option(min=1, help="How many to write down, at most num-beams.")] = 5,
    length_penalty: float = 1.0,
    max_new_tokens: int = 128,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut sources that are longer than the model reads.")
    ] = False,
    batch_size: int = 64,
    output_dir: Annotated[Path | None, typer.Option(help="Default: the checkpoint's folder, by task and file.")] = None,
) -> None:
    """Score a checkpoint on a test file, and write down all that it answered."""
    others, backwards = others or [], backwards or []
    for folder in (checkpoint, *others, *backwards):
        if not (folder / "config.json").is_file():
            fail(f"{folder}: {'there is no model (config.json) in it' if folder.is_dir() else 'no such folder'}.")
        if not any(folder.glob("*.safetensors")):
            fail(f"{folder}: there are no weights (*.safetensors) in it.")
    if (others or backwards) and task == Task.CLASSIFICATION:
        fail("--with and --backwards are for tasks whose answers are written; classification is of one checkpoint.")
    if backwards and truncate:
        fail("--truncate does not go with --backwards: each would judge another part of the source.")
    test = read_test(task, testfile, references)
    options: dict[str, Any] = {"num_beams": num_beams, "num_return_sequences": min(nbest, num_beams)}
    options |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "length_penalty": length_penalty}
    try:
        if task == Task.CLASSIFICATION:
            options, rows = {"batch_size": batch_size}, classify(checkpoint, test.sources, batch_size)
        elif backwards:
            rows = generate_from_both_ends([checkpoint, *others], backwards, test.sources, options)
        else:
            rows = generate(checkpoint, others, test.sources, options | {"truncation": truncate})
    except (ValueError, OSError) as error:
        fail(str(error).replace("truncation=True", "--truncate"))
    scores = score(task, [row[0][0] for row in rows], test.references, tokenized, lowercase)
    if task == Task.CLASSIFICATION:
        known, given = {label for label, _ in rows[0]}, {labels[0] for labels in test.references}
        if foreign := sorted(given - known):
            fail(f"{testfile}: the model has no label {', '.join(foreign)}; it has {', '.join(sorted(known))}.")
    data = [testfile] if references is None else [testfile, references]
    sums = {folder: sha256(sorted(folder.glob("*.safetensors"))) for folder in (checkpoint, *others, *backwards)}
    result = scores | {
        "task": str(task),
        "rows": len(rows),
        "options": options,
        "weights_sha256": sums[checkpoint],
        "data_sha256": sha256(data),
        "versions": {m.__name__: m.__version__ for m in (dragoman, transformers, torch)},
    }
    for name, folders in {"with": others, "backwards": backwards}.items():
        if folders:
            result[name] = [{"checkpoint": str(folder), "weights_sha256": sums[folder]} for folder in folders]
    together = "-ensemble" if others or backwards else ""
    output_dir = output_dir or checkpoint / f"{task}-{testfile.name}{together}"
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "score.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    with (output_dir / "nbest.tsv").open("w", encoding="utf-8", newline="\n") as file:
        for number, (source, row) in enumerate(zip(test.sources, rows, strict=True)):
            for rank, (text, value) in enumerate(row, start=1):
                file.write(f"{number}\t{rank}\t{value:.6f}\t{' '.join(text.split())}\t{' '.join(source.split())}\n")
    shown = (f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items())
    typer.echo(f"{testfile.name}, {len(rows)} rows: {', '.join(shown)}")


if __name__ == "__main__":
    typer.run(main)
