"""Does an attribution find the word that decides, and do the words it names move the model?

    python benchmarks/attribution.py planted
    python benchmarks/attribution.py sst2 --data DATA

Trains small classifiers from scratch, some minutes on one thread; writes ``benchmarks/results/attribution-*.json``.
``python benchmarks/explanation.py`` makes the page of them.
"""

import argparse
import json
import platform
import random
import statistics
import time
import warnings
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from classifiers import KEYS, Examples, accuracy, planted, read_sst2, train_classifier
from dragoman.attribution import METHODS, attribute
from dragoman.faithfulness import Faithfulness, faithfulness

RESULTS = Path(__file__).parent / "results"
SLOW = "attention_flow"  # on a part of the sentences, which the report names
PLANTED = ((pooling, seed) for pooling in ("mean", "attention") for seed in (0, 1, 2))


def conditions() -> dict[str, Any]:
    libraries = ("torch", "transformers", "captum", "dragoman")
    return {
        "date": date.today().isoformat(),
        **{name: version(name) for name in libraries},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def find_planted(pooling: str, seed: int, count: int) -> dict[str, Any]:
    """In how many of ``count`` new texts each method ranks the word that decides first."""
    model, tokenizer = train_classifier(planted(2000, 100 + seed), seed, epochs=6, vocab_size=700, pooling=pooling)
    texts = [text for text, _ in planted(count, 200 + seed)]
    row: dict[str, Any] = {"pooling": pooling, "seed": seed, "texts": count}
    row["accuracy"] = accuracy(model, tokenizer, planted(count, 200 + seed))
    for method in METHODS:
        part = texts[: count // 10] if method == SLOW else texts
        first = [attribute(model, tokenizer, text, method=method).ranked()[0].text in KEYS for text in part]
        row[method] = statistics.mean(first)
    return row


def measure_faithfulness(model: Any, tokenizer: Any, examples: Examples, slow: int) -> dict[str, Any]:
    """Comprehensiveness and sufficiency: mean and standard error over the sentences, and seconds a sentence."""
    report: dict[str, Any] = {}
    for method in METHODS:
        part = examples[:: max(len(examples) // slow, 1)] if method == SLOW else examples
        begin, found = time.process_time(), []
        attributions = [attribute(model, tokenizer, text, method=method) for text, _ in part]
        seconds = (time.process_time() - begin) / len(part)
        random_draws = 5 if method == "leave_one_out" else 0
        found = [faithfulness(attribution, draws=random_draws) for attribution in attributions]
        report[method] = summary((row[:2] for row in found), len(part)) | {"seconds": seconds}
        if random_draws:
            report["random words"] = summary((row[2:] for row in found), len(part))
        print(method, report[method], flush=True)
    return report


def summary(rows: Iterable[Any], count: int) -> dict[str, Any]:
    names = Faithfulness._fields[:2]
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {"sentences": count} | {
        name: [statistics.mean(values), statistics.stdev(values) / count**0.5] for name, values in columns
    }


def run_planted(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for pooling, seed in PLANTED:
        rows.append(find_planted(pooling, seed, options.count))
        print(rows[-1], flush=True)
    return {"rows": rows}


def run_sst2(options: argparse.Namespace) -> dict[str, Any]:
    if options.model is None:
        train = read_sst2(options.data / "sst2" / "stsa.binary.train")
        sizes = {"hidden_size": 128, "encoder_intermediate_size": 256, "dropout": 0.3}
        model, tokenizer = train_classifier(train, seed=0, epochs=4, vocab_size=8000, **sizes)
        if options.save is not None:
            model.save_pretrained(options.save), tokenizer.save_pretrained(options.save)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    dev = read_sst2(options.data / "sst2" / "stsa.binary.dev")
    sample = random.Random(0).sample(dev, min(options.count, len(dev)))
    return {
        "accuracy": accuracy(model, tokenizer, dev),
        "methods": measure_faithfulness(model, tokenizer, sample, slow=20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("planted", "sst2"))
    parser.add_argument("--count", type=int, default=150, help="texts: for each model, or of the dev set")
    parser.add_argument("--data", type=Path, help="the folder that holds sst2/stsa.binary.train and .dev")
    parser.add_argument("--model", type=Path, help="a classifier of its sentences; without it, one is trained")
    parser.add_argument("--save", type=Path, help="where to save the one that is trained")
    options = parser.parse_args()
    if options.part == "sst2" and options.data is None:
        parser.error("sst2 needs --data")
    warnings.filterwarnings("ignore", "Integrated gradients miss")
    report = {"conditions": conditions(), **(run_planted if options.part == "planted" else run_sst2)(options)}
    RESULTS.joinpath(f"attribution-{options.part}.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
