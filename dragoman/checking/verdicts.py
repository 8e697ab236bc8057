"""What a line says, and the limits by which it judges. Deviations are relative norms, ``‖a − b‖ / ‖b‖``, in fp32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

# Rounding in fp32 stays a decade below these; the faults they are for lie far above.
LIMITS = {
    "step": 1e-6,  # loss and gradient of one optimisation step, however it is split
    "loss": 1e-6,
    "eval_loss": 1e-6,
    "logits": 1e-5,
    "gradient": 1e-5,
    "attention": 1e-5,
    "half": 2e-2,  # bf16, where a kernel takes nothing wider
    "tokens": 0.0,  # share of rows that differ
    "bits": 0.0,
}
MATTERS = 1e-3  # what a control must change at least, so that no line passes by being vacuous

ROUNDING = 1e-4  # rounding in fp32 does not amount to more; above it nothing is measured a second time
SHOWN = 3  # deviations that a note lists

Status = Literal["pass", "FAIL", "not offered"]


@dataclass(frozen=True)
class Verdict:
    """One line of the table. ``deviation`` is the largest measured, against its own ``limit``."""

    number: int
    name: str
    status: Status
    deviation: float | None = None
    limit: float | None = None
    note: str = ""


@dataclass
class Evidence:
    """What one line has measured so far."""

    measured: list[tuple[str, float, float]] = field(default_factory=list)  # what, deviation, limit
    faults: list[str] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def compare(self, what: str, found: Tensor, expected: Tensor, kind: str) -> None:
        what += "" if found.isfinite().all() else " (not finite)"
        self.measured.append((what, relative_error(found, expected), LIMITS[kind]))

    def compare_tokens(self, what: str, found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> None:
        differ = sum(list(a) != list(b) for a, b in zip(found, expected, strict=True))
        self.measured.append((what, differ / len(expected), LIMITS["tokens"]))

    def matters(self, what: str, found: Tensor, reference: Tensor) -> None:
        """A control: this has to change the result."""
        self.require(relative_error(found, reference) > MATTERS, f"control: {what} changes nothing")

    def require(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    @contextmanager
    def part(self, what: str = "") -> Iterator[None]:
        """A part of a line: what the subject does not offer is left out, what it crashes on is a finding."""
        try:
            yield
        except NotImplementedError as error:
            self.omitted.append(f"{what} ({first_line(error)})" if what else first_line(error))
        except Exception as error:
            self.faults.append(f"{what}{what and ': '}{type(error).__name__}: {first_line(error)}")

    def verdict(self, number: int, name: str) -> Verdict:
        measured = sorted(self.measured, key=lambda m: -excess(m[1], m[2]))
        above = [f"{what} {value:.1e} > {limit:.0e}" for what, value, limit in measured if not value <= limit]
        status: Status = "FAIL" if self.faults or above else "pass" if measured else "not offered"
        if len(above) > SHOWN:
            above[SHOWN:] = [f"{len(above) - SHOWN} more"]
        notes = [*self.faults, *above, *self.remarks]
        if self.omitted:
            notes.append(", ".join(self.omitted) if status == "not offered" else f"without {', '.join(self.omitted)}")
        deviation, limit = measured[0][1:] if measured else (None, None)
        return Verdict(number, name, status, deviation, limit, "; ".join(notes))


def excess(deviation: float, limit: float) -> float:
    """How much of its limit a deviation uses up; 0 of 0 is nothing."""
    return deviation / limit if limit else deviation and float("inf")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """``‖a − b‖ / ‖b‖``; infinite where the shapes differ or a number is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    return error if error == error else float("inf")
