"""How fast ``generate()`` is, beside Marian, BART, T5, T5Gemma, nn.Transformer, x-transformers and CTranslate2.

    python benchmarks/generate.py [--quick] [--only "greedy, batch 1"]

Every engine has a process of its own; in every round all run once, forwards and backwards in turn. Ratios are over
Marian, medians, with the lowest and the highest round. Engines with the same weights must write the same tokens, but
after a choice between two as good as equal, and rows that neither repeat themselves nor each other; otherwise there is
no result. Linux only.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from generation_cases import Case
from generation_engines import ENGINES, GREEDY_ONLY, SAME_WEIGHTS, scores_of
from peer_models import SIZES
from turns import TRIES, cell_text, compare, conditions, run_cells, take_turns, working

SMALL, BASE = Case(*SIZES["small"]), Case(*SIZES["base"])
CASES = {
    "small, greedy, batch 1": SMALL,
    "base, greedy, batch 1": BASE,
    "small, greedy, batch 16": SMALL._replace(batch=16),
    "base, greedy, batch 16": BASE._replace(batch=16),
    "small, beam 4, batch 1": SMALL._replace(beams=4),
    "small, beam 4, batch 8": SMALL._replace(beams=4, batch=8),
    "base, beam 4, batch 1": BASE._replace(beams=4),
}
REFERENCE = "Marian"
TIE = 1e-3  # log-probabilities: closer than that, engines may choose differently


def check(case: Case, ids: dict[str, list[list[int]]]) -> dict[str, str]:
    """What is wrong with engines of other weights. Raises ValueError where those of the same weights disagree, or an
    output of theirs is too simple to compare."""
    wrong = {}
    for name, rows in ids.items():
        try:
            check_rows(case, name, rows)
        except ValueError as error:
            if "Dragoman" in name or name in SAME_WEIGHTS:
                raise
            wrong[name] = str(error)
    for name in set(SAME_WEIGHTS) & ids.keys():
        for row, (found, expected) in enumerate(zip(ids[name], ids[REFERENCE], strict=True)):
            if found != expected and not is_tie(case, row, found, ids[REFERENCE]):
                raise ValueError(f"{name} and {REFERENCE} disagree in row {row}: {found} and {expected}")
    return wrong


def check_rows(case: Case, name: str, rows: list[list[int]]) -> None:
    if any(len(row) != case.tokens or len(set(row)) < len(row) / 2 for row in rows):
        raise ValueError(f"{name} repeats itself or ended early: {rows[0]}")
    if len(set(map(tuple, rows))) < len(rows):
        raise ValueError(f"{name} gives the same for different sources")


def is_tie(case: Case, row: int, found: list[int], expected: list[list[int]]) -> bool:
    """Whether two rows part at a choice as good as equal; of beams, whether the whole rows are as likely."""
    scores = scores_of(case, expected)[row]
    if case.beams == 1:
        first = next(i for i, pair in enumerate(zip(found, expected[row], strict=True)) if pair[0] != pair[1])
        return abs(float(scores[first, found[first]] - scores[first, expected[row][first]])) < TIE
    ours = scores_of(case, [found if i == row else ids for i, ids in enumerate(expected)])[row]
    sums = [
        float(s.gather(1, s.new_tensor(ids).long()[:, None]).sum())
        for s, ids in ((scores, expected[row]), (ours, found))
    ]
    return abs(sums[0] - sums[1]) < TIE * case.tokens


def measure(case: Case, engines: list[str], rounds: int, threads: int = 2, tries: int = TRIES) -> dict[str, Any]:
    """Raises ValueError where outputs forbid to compare times."""
    names = [REFERENCE, *(name for name in engines if case.beams == 1 or name not in GREEDY_ONLY)]
    arguments = {name: [name, json.dumps(case), str(threads)] for name in names}
    with working("generation_engines.py", arguments, threads) as (workers, failed):
        wrong = check(case, {name: worker.first["ids"] for name, worker in workers.items()})
        sound = {name: worker for name, worker in workers.items() if name not in wrong}
        answers = take_turns(sound, ["run"] * (rounds + 1), 1, tries)  # the first round warms up
    rows = compare(answers, REFERENCE)
    for name, found in answers.items():
        rows[name]["ms_per_token"] = statistics.median(a["seconds"] for a in found) * 1e3 / case.tokens
    return {
        "conditions": conditions(threads, rounds),
        "case": case._asdict(),
        "engines": rows,
        "failed": failed | {name: f"is not measured: {message}" for name, message in wrong.items()},
    }


def line(name: str, result: dict[str, Any]) -> str:
    cells = [f"{engine} {cell_text(row)}" for engine, row in result["engines"].items()]
    return f"{name}: {', '.join(cells)}" + "".join(f"\n  {e} {message}" for e, message in result["failed"].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [name for name in ENGINES if name != REFERENCE]
    parser.add_argument("--quick", action="store_true", help="three rounds, small models, undisturbed or not")
    parser.add_argument("--engines", nargs="*", choices=peers, default=peers, help="beside " + REFERENCE)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("generate.json"))
    options = parser.parse_args()
    rounds, tries = (3, 1) if options.quick else (options.rounds, TRIES)
    cells = {
        name: partial(measure, case, options.engines, rounds, options.threads, tries)
        for name, case in CASES.items()
        if options.only in name and not (options.quick and "base" in name)
    }
    print("Times as fast as Marian (lowest-highest)", flush=True)
    _, failures = run_cells(cells, options.output, {}, line)
    raise SystemExit(len(failures))


if __name__ == "__main__":
    main()
