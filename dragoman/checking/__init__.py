"""The invariants that an encoder-decoder must hold, as a test kit for any of them: ours, one of transformers, yours.

from dragoman.checking import check
assert all(verdict.status != "FAIL" for verdict in check("runs/mine"))
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from .attention import check_attention
from .decoding import check_decoding
from .padding import check_packing, check_pad_length, check_pad_side, check_rows
from .saving import check_saving
from .subjects import Subject, find_subject
from .targets import check_causality, check_labels, check_source_mask
from .training import check_accumulation, check_evaluation
from .verdicts import LIMITS, ROUNDING, Evidence, Verdict

LINES: dict[int, tuple[str, Callable[[Subject, Evidence], None]]] = {
    1: ("accumulation split", check_accumulation),
    2: ("pad length", check_pad_length),
    3: ("pad side", check_pad_side),
    4: ("row order, batch size", check_rows),
    5: ("packed = padded", check_packing),
    6: ("cached = uncached", check_decoding),
    7: ("save and load", check_saving),
    8: ("attention backends", check_attention),
    9: ("labels shifted once", check_labels),
    10: ("causality", check_causality),
    11: ("source mask", check_source_mask),
    12: ("eval_loss", check_evaluation),
}
FORWARD_ONLY = (2, 3, 4, 6, 10, 11)


def check(
    model: str | Subject, only: Sequence[int] | None = None, overrides: Mapping[str, Any] | None = None
) -> Iterator[Verdict]:
    """One verdict a line, as each is reached.

    ``model`` is a preset, a class of transformers or its model type, or a folder; ``only`` picks lines by number.

    Raises:
        ValueError: at once, for a model, an override or a line that there is not.
    """
    subject = model if isinstance(model, Subject) else find_subject(model, overrides)
    chosen = list(LINES) if only is None else list(only)
    if unknown := set(chosen) - set(LINES):
        raise ValueError(
            f"There is no line {', '.join(map(str, sorted(unknown)))}: they are numbered 1 to {len(LINES)}."
        )
    return (judge(subject, number) for number in chosen)


def judge(subject: Subject, number: int) -> Verdict:
    """One line. What the subject does not offer is said; what it crashes on is a finding.

    Trained weights may round more than the limits allow. Whether a small deviation of a folder's is a fault or rounding
    is decided in float64, where a fault stays as large as it was; the note then says so.
    """
    verdict = judge_as_is(subject, number)
    rounding = not (subject.small or subject.float64) and 0 < (verdict.deviation or 0) < ROUNDING
    if verdict.status == "FAIL" and rounding:
        exact = judge_as_is(subject.in_float64(), number)
        if exact.status == "pass":
            return replace(exact, note=f"in float64; in fp32 {verdict.deviation:.1e}, by rounding")
    return verdict


def judge_as_is(subject: Subject, number: int) -> Verdict:
    name, line = LINES[number]
    evidence = Evidence()
    if subject.forward_only and number not in FORWARD_ONLY:
        evidence.omitted.append("left to whoever uses it")
        return evidence.verdict(number, name)
    with evidence.part(), one_thread() if subject.small else nullcontext():
        line(subject, evidence)
    return evidence.verdict(number, name)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


__all__ = ["LIMITS", "LINES", "Evidence", "Subject", "Verdict", "check", "find_subject", "judge"]
