"""Do the tests catch faults? Plants them in a copy of the sources, one at a time, and expects red.

    python benchmarks/mutation.py               # the written list, and 60 made from the syntax tree
    python benchmarks/mutation.py --listed      # or --generated 200 --seed 7
    python benchmarks/mutation.py --sample 3 --seed 1

A process that has imported torch, transformers and pytest, but not Dragoman, forks one child a fault. The child runs
the tests of the changed module first, then the others, up to the first that fails. What failed is run once more on a
copy without a fault. Exit status 0: every listed fault was caught; of the generated ones some change nothing.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mutation_faults import LISTED, Mutant, listed
from mutation_operators import generate
from mutation_running import Child, Outcome, Runner

GENERATED = 60
UNTOUCHED = Mutant("nothing planted", "", "", "")


def choose(arguments: argparse.Namespace) -> list[Mutant]:
    both = not arguments.listed and arguments.generated is None
    mutants = listed() if both or arguments.listed else []
    mutants += generate(GENERATED if both else arguments.generated or 0, arguments.seed)
    if arguments.sample is not None:
        mutants = random.Random(arguments.seed).sample(mutants, min(arguments.sample, len(mutants)))
    return mutants


def run_all(runner: Runner, mutants: list[Mutant], workers: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Each mutant as it ends, ``workers`` at a time."""
    waiting = mutants[::-1]
    running: dict[Child, Mutant] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                mutant = waiting.pop()
                running[runner.start(mutant)] = mutant
            ended = [(child, outcome) for child in running if (outcome := runner.poll(child)) is not None]
            for child, outcome in ended:
                yield running.pop(child), outcome
            time.sleep(0 if ended else 0.05)
    finally:
        for child in running:  # interrupted
            child.kill()


def row(mutant: Mutant, outcome: Outcome) -> str:
    verdict = f"caught by {outcome.failed}" if outcome.failed else f"SURVIVED {outcome.passed} tests"
    if mutant.file == UNTOUCHED.file:
        verdict = f"{outcome.failed} fails" if outcome.failed else f"{outcome.passed} tests pass"
    where = mutant.file if mutant.kind in (LISTED, "") else f"{mutant.file}, {mutant.kind}"
    return f"{mutant.name} | {where} | {verdict} | {outcome.seconds:.1f} s, {outcome.cpu_seconds:.1f} s of CPU"


def summary(outcomes: list[tuple[Mutant, Outcome]]) -> str:
    lines = []
    for title, field in (("File", "file"), ("Kind", "kind")):
        groups = defaultdict(list)
        for mutant, outcome in outcomes:
            groups[getattr(mutant, field)].append(outcome.failed is not None)
        lines.append(f"\n{title} | planted | caught")
        lines += [f"{name} | {len(caught)} | {sum(caught)}" for name, caught in sorted(groups.items())]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listed", action="store_true", help="the written list only, or with --generated")
    parser.add_argument("--generated", type=int, metavar="N", help="N from the syntax tree only, or with --listed")
    parser.add_argument("--sample", type=int, metavar="N", help="N drawn from the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of CPU after which a mutant has survived")
    arguments = parser.parse_args()
    mutants, begin = choose(arguments), time.monotonic()
    print(f"seed {arguments.seed}: {len(mutants)} faults\n\nFault | file | verdict | time", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder), arguments.limit)
        outcomes = []
        whole = [] if arguments.sample else [UNTOUCHED]
        for mutant, outcome in run_all(runner, whole + mutants, arguments.workers):
            print(row(mutant, outcome), flush=True)
            if mutant is not UNTOUCHED:
                outcomes.append((mutant, outcome))
            elif outcome.failed:
                print(f"The tests fail without a fault:\n{outcome.output}")
                return 2
        tests = {outcome.failed for _, outcome in outcomes if outcome.failed and "::" in outcome.failed}
        ((_, again),) = run_all(runner, [UNTOUCHED._replace(text="\n".join(sorted(tests)))], 1)
    survivors = [mutant for mutant, outcome in outcomes if not outcome.failed]
    print(summary(outcomes), "\nSurvivors:", *(f"{mutant.name} | {mutant.file}" for mutant in survivors), sep="\n")
    cpu = sum(outcome.cpu_seconds for _, outcome in outcomes)
    print(
        f"\n{len(outcomes) - len(survivors)} of {len(outcomes)} caught, in {time.monotonic() - begin:.0f} s with "
        f"{arguments.workers} workers, {cpu:.0f} s of CPU."
    )
    if again.failed:
        print(f"{again.failed} fails without a fault too:\n{again.output}")
        return 2
    print(f"Without a fault the {len(tests)} tests that caught them pass.")
    if missed := [mutant.name for mutant in survivors if mutant.kind == LISTED]:
        print(f"Listed, and not caught: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
