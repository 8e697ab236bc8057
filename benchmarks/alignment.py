"""Does cross-attention know which letters a phoneme comes from? Beside an aligner that never saw a model.

    python examples/pronounce.py --output_dir runs/pronounce
    python benchmarks/alignment.py runs/pronounce

Reads held-out words with their first pronunciation in the dictionary; writes ``benchmarks/results/alignment.json`` and
``docs/images/alignment.png``. ``python benchmarks/explanation.py`` makes the page of it.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import letter_alignment
from attribution import RESULTS, conditions
from dragoman import align
from dragoman.plotting import draw_attention

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

PICTURE = RESULTS.parent.parent / "docs" / "images" / "alignment.png"


def agreement(chosen: list[list[int]], letters: list[list[set[int]]]) -> dict[str, float]:
    """Of all phonemes, those whose chosen letter is one of the aligner's; and those at most one letter off."""
    pairs = [
        (i, own) for row, rows in zip(chosen, letters, strict=True) for i, own in zip(row, rows, strict=True) if own
    ]
    near = [any(abs(i - letter) <= 1 for letter in own) for i, own in pairs]
    return {"same": sum(i in own for i, own in pairs) / len(pairs), "within one letter": sum(near) / len(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--words", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=5000, help="that the aligner learns from")
    options = parser.parse_args()
    from pronounce import is_held_out, read_dictionary

    model, tokenizer = (kind.from_pretrained(options.model) for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
    pairs = [(word, ways[0].split()) for word, ways in read_dictionary().items()]
    random.Random(0).shuffle(pairs)
    weights = letter_alignment.learn([pair for pair in pairs if not is_held_out(pair[0])][: options.pairs])
    held_out = [pair for pair in pairs if is_held_out(pair[0])][: options.words]
    letters = [letter_alignment.align(word, phonemes, weights) for word, phonemes in held_out]
    words, ways = [word for word, _ in held_out], [" ".join(phonemes) for _, phonemes in held_out]
    config: Any = model.config
    layers = range(config.decoder_num_hidden_layers)
    choices: dict[str, dict[str, int]] = {"mean of all": {}, **{f"layer {i}": {"layer": i} for i in layers}}
    for i in layers:
        choices |= {f"layer {i}, head {j}": {"layer": i, "head": j} for j in range(config.decoder_num_attention_heads)}
    report: dict[str, Any] = {}
    for name, choice in choices.items():
        found = align(model, tokenizer, words, ways, units="tokens", **choice)
        report[name] = agreement([[i for i, _ in sorted(row.links, key=lambda x: x[1])] for row in found], letters)
        print(name, report[name], flush=True)
    diagonal = [[j * len(word) // len(phonemes) for j in range(len(phonemes))] for word, phonemes in held_out]
    report["the diagonal"] = agreement(diagonal, letters)
    result = {"conditions": conditions(), "words": len(held_out), "pairs": options.pairs, "agreement": report}
    RESULTS.joinpath("alignment.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    draw_attention(align(model, tokenizer, "photography", "F AH T AA G R AH F IY", units="tokens")).savefig(PICTURE)


if __name__ == "__main__":
    main()
