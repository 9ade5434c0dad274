"""The errors a person can cause, each with its exit code and a hint.

BenchError
├── RecipeError          2  a recipe, a track or the command line is wrong
├── PlanRefused          3  this machine cannot run this plan
├── ProofFailed          4  a fused kernel disagrees with its reference
├── DataError            5  data missing, truncated or of another hash
├── OutOfMemory          6  the plan does not fit the device's memory
├── Diverged             7  loss or gradient became non-finite
├── VerificationFailed   8  a record or the board does not hold what it claims
└── Interrupted          9  stopped from outside; `--resume` continues

The CLI prints `error: <message>` and `hint: <hint>`; a traceback only with `--debug`.
Broken internal invariants are `assert`s, never one of these.
"""

from __future__ import annotations

from typing import ClassVar


class BenchError(Exception):
    """A failure that a person can mend.

    Args:
        message: one line: what is wrong and where.
        hint: one line: what mends it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> list[str]:
        """What the command line prints."""
        hint = [f"hint: {self.hint}"] if self.hint else []
        return [
            f"error: {self.message}",
            *(f"  {problem}" for problem in getattr(self, "problems", ())),
            *hint,
        ]


class RecipeError(BenchError):
    """A recipe, a track or the command line is wrong; `problems` lists every fault of the file."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.problems = problems


class PlanRefused(BenchError):
    """This machine cannot run this plan; raised before any download or compile."""

    exit_code = 3


class ProofFailed(BenchError):
    """A fused kernel disagrees with its eager reference on this device."""

    exit_code = 4


class DataError(BenchError):
    """Data is missing, truncated, unreadable or of another hash than the manifest's."""

    exit_code = 5


class OutOfMemory(BenchError):
    """The run did not fit the device's memory."""

    exit_code = 6


class Diverged(BenchError):
    """The loss or a gradient became non-finite; the record is kept and marked."""

    exit_code = 7


class VerificationFailed(BenchError):
    """A record, its event log or the board does not hold what it claims."""

    exit_code = 8


class Interrupted(BenchError):
    """Stopped from outside; the newest checkpoint is whole and `--resume` continues from it."""

    exit_code = 9
