"""Words that nobody wrote, answered by several models together, to be learnt beside the words that there are.

    python examples/recipes/invent.py train.tsv 100000 runs/g2p/with-invented.tsv --model runs/g2p/seed-0 \
        --model runs/g2p/seed-1 --model runs/g2p/seed-2 --but-not valid.tsv

Of what others make of new words, a model sees little on the words that they have learnt themselves; invented ones are
new to them, and nobody has to answer them (He et al. 2021, arXiv:2106.06168). They are drawn from n-grams of the
letters of the first column. Where there are lists of real words, `--words` takes those that are new from them instead
(Sun et al. 2019, arXiv:1904.03446). The output has the lines of `train.tsv`, then the new words with what the models
write, by the mean of their probabilities; with `--backwards`, what they and models that learnt targets turned round
(turn_round.py) find likely together. Needs dragoman[examples].
"""

import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from scored_files import fail, read_lines, read_pairs
from writing import generate, generate_from_both_ends

ORDER = 5  # letters that the next one depends on
PATIENCE = 10_000
BEGIN, END = "\x02", "\x03"


class LetterModel:
    """``p(letter | the last n)``, which backs off to the last n − 1 with probability types / (types + tokens).

    Types and tokens are those seen after these n letters (Witten & Bell 1991).
    """

    def __init__(self, words: list[str]) -> None:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for word in words:
            text = BEGIN * ORDER + word + END
            for at in range(ORDER, len(text)):
                for n in range(ORDER + 1):
                    counts[text[at - n : at]][text[at]] += 1
        self.seen = {last: (list(after), list(after.values())) for last, after in counts.items()}

    def draw(self, rng: random.Random) -> str:
        text = BEGIN * ORDER
        while not text.endswith(END):
            text += self.draw_letter(text, rng)
        return text[ORDER:-1]

    def draw_letter(self, text: str, rng: random.Random) -> str:
        for n in range(ORDER, -1, -1):
            letters, counts = self.seen.get(text[len(text) - n :], ([], []))
            types, tokens = len(letters), sum(counts)
            if letters and (n == 0 or rng.random() < tokens / (types + tokens)):
                return rng.choices(letters, counts)[0]
        raise AssertionError("nothing follows nothing")


def invent(words: list[str], but_not: set[str], seed: int) -> Iterator[str]:
    """New words, each once; of lengths that all but one in a thousand of the words have, at either end.

    They end when ten thousand draws in a row give no new one.
    """
    model, rng, lengths = LetterModel(words), random.Random(seed), usual_lengths(words)
    met, in_vain = {*words, *but_not}, 0
    while in_vain < PATIENCE:
        word, in_vain = model.draw(rng), in_vain + 1
        if len(word) in lengths and word not in met:
            met.add(word)
            in_vain = 0
            yield word


def usual_lengths(words: list[str]) -> range:
    quantiles = statistics.quantiles(map(len, words), n=1000, method="inclusive")
    return range(math.floor(quantiles[0]), math.ceil(quantiles[-1]) + 1)


def look_up(lists: list[Path], words: list[str], but_not: set[str], seed: int) -> list[str]:
    """New words of the lists, each once, in an order that `seed` draws; of the lengths and the letters of the words.

    A list has a word a line, and what follows a space does not count. Where all words are in capitals, these are, too.
    """
    found = (line.split()[0] for path in lists for line in read_lines(path) if line.strip())
    if all(word == word.upper() for word in words):
        found = (word.upper() for word in found)
    letters, lengths, known = {*"".join(words)}, usual_lengths(words), {*words, *but_not}
    new = [word for word in dict.fromkeys(found) if len(word) in lengths and letters.issuperset(word)]
    new = [word for word in new if word not in known]
    random.Random(seed).shuffle(new)
    return new


def main(
    train_file: Annotated[Path, typer.Argument(help="`word<TAB>answer` a line.")],
    count: Annotated[int, typer.Argument(min=1, help="How many words to add.")],
    output: Annotated[Path, typer.Argument()],
    models: Annotated[list[Path], typer.Option("--model", help="A checkpoint that answers. Repeat it for more.")],
    but_not: Annotated[Path | None, typer.Option(help="A file in whose first column are words to be left out.")] = None,
    lists: Annotated[
        list[Path] | None,
        typer.Option("--words", help="A list to take words from, not to invent any. Repeat it for more."),
    ] = None,
    backwards: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that writes from the end. Repeat it for more.")
    ] = None,
    num_beams: Annotated[int, typer.Option(min=1)] = 1,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 1024,
) -> None:
    """Invent words, or look them up, and have models answer them."""
    pairs = read_pairs(train_file)
    left_out = {word for word, _ in read_pairs(but_not)} if but_not else set()
    known = list(dict.fromkeys(word for word, _ in pairs))
    new = look_up(lists, known, left_out, seed) if lists else invent(known, left_out, seed)
    words = list(islice(new, count))
    if len(words) < count:
        place = f"in {' and '.join(map(str, lists))}" if lists else "to be had from its letters"
        fail(f"{train_file}: there are {len(words):,} new words {place}, not {count:,}.")
    options = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    options |= {"num_return_sequences": 1, "length_penalty": 1.0}
    try:
        if backwards:
            rows = generate_from_both_ends(models, backwards, words, options)
        else:
            rows = generate(models[0], models[1:], words, options)
    except (ValueError, OSError) as error:
        fail(str(error))
    answers = [row[0][0] for row in rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8", newline="\n") as file:
        for word, answer in [*pairs, *zip(words, answers, strict=True)]:
            if answer:
                file.write(f"{word}\t{answer}\n")
    typer.echo(f"{output}: {len(pairs):,} lines, and {count:,} new words")


if __name__ == "__main__":
    typer.run(main)
