"""What is left of a model in CTranslate2 with fewer bits: rows of tokens that stay those of float32, in percent.

    DRAGOMAN_DATA=folder python benchmarks/ctranslate2_agreement.py

First a trained model, aren_transliteration on the 1,431 names of ar2en's eval part, with its error rates under beam 4;
then every preset with random weights, narrow and with a small vocabulary: their next tokens lie closer together than
those of any trained model. Weights are stored in the type named; the engine computes in float32, but for int8, once in
either. Prints tables in Markdown.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from rapidfuzz.distance import Levenshtein
from transformers.utils import logging

from dragoman import DragomanForConditionalGeneration, DragomanTokenizer, presets
from dragoman.conversion.ctranslate2_reader import read_ctranslate2
from dragoman.conversion.ctranslate2_writer import write_ctranslate2

# Stored as, computed in.
KINDS = [("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32"), ("int16", "float32")]
KINDS += [("int8", "float32"), ("int8", "int8")]
ROWS = 200


def translate(folder: Path, source: list[list[str]], compute_type: str, beams: int, **options: Any) -> list[list[str]]:
    engine = ctranslate2.Translator(str(folder), compute_type=compute_type, inter_threads=1, intra_threads=1)
    results = engine.translate_batch(source, beam_size=beams, max_batch_size=128, **options)
    return [result.hypotheses[0] for result in results]


def percent(found: list[Any], expected: list[Any]) -> str:
    return f"{100 * sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected):.1f}"


def trained(data: Path, work: Path) -> None:
    lines = (data / "ar2en" / "ar2en-eval.txt").read_text("utf-8").splitlines()
    arabic, english = zip(*(line.split("\t") for line in lines), strict=True)
    source = [list(name) for name in arabic]
    for part in read_ctranslate2(data / "aren_transliteration"):
        part.save_pretrained(work / "ours")
    expected = {beams: translate(data / "aren_transliteration", source, "float32", beams) for beams in (1, 4)}
    print("\nstored | computed | file, KB | same greedy, % | same beam 4, % | WER | CER")
    print("--- | --- | --: | --: | --: | --: | --:")
    for stored, computed in KINDS:
        if not (work / stored).exists():
            write_ctranslate2(work / "ours", work / stored, stored)
        found = {beams: translate(work / stored, source, computed, beams) for beams in (1, 4)}
        words = ["".join(tokens) for tokens in found[4]]
        edits = sum(Levenshtein.distance(*pair) for pair in zip(words, english, strict=True))
        rates = f"{100 - float(percent(words, list(english))):.1f} | {100 * edits / len(''.join(english)):.1f}"
        same = " | ".join(percent(found[beams], expected[beams]) for beams in (1, 4))
        print(f"{stored} | {computed} | {(work / stored / 'model.bin').stat().st_size // 1000} | {same} | {rates}")


def untrained(name: str, work: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "encoder_intermediate_size": 96, "decoder_intermediate_size": 80}
    text = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"]
    tokenizer = DragomanTokenizer.train(text, vocab_size=31, algorithm="char", byte_fallback=False)
    model = DragomanForConditionalGeneration(presets.PRESETS[name](vocab_size=len(tokenizer), **sizes))
    for part in (model, tokenizer):
        part.save_pretrained(work / name)
    letters = tokenizer.convert_ids_to_tokens(list(range(4, len(tokenizer))))
    source = [[letters[int(i)] for i in torch.randint(len(letters), (8,))] for _ in range(ROWS)]
    rows = []
    for stored, computed in (("float32", "float32"), ("int8", "int8")):
        write_ctranslate2(work / name, work / f"{name}-{stored}", stored)
        options = {"max_decoding_length": 8, "no_repeat_ngram_size": 1}
        rows.append([translate(work / f"{name}-{stored}", source, computed, beams, **options) for beams in (1, 4)])
    print(name, *(percent(found, expected) for found, expected in zip(rows[1], rows[0], strict=True)), sep=" | ")


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"ctranslate2 {ctranslate2.__version__}, torch {torch.__version__}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        if data := os.environ.get("DRAGOMAN_DATA"):
            trained(Path(data), Path(folder))
        else:
            print("DRAGOMAN_DATA is not set: the trained model is left out.")
        print("\npreset, int8 | same greedy, % | same beam 4, %\n--- | --: | --:")
        for name in presets.PRESETS:
            untrained(name, Path(folder))


if __name__ == "__main__":
    main()
