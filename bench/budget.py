"""A row's budget of time: the step that would go beyond it is left out, and the row is named.

How long a row takes rests on the machine: torch's bfloat16 products are a hundred times as slow on
a CPU without the instructions for them, and a run that waited for such rows might not end. Python
cannot stop an operation that runs, so a row asks before each step whether it still fits, by what
the last one of its kind took; a formula in half precision, whose time float64's does not tell, asks
before each of its operations.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# For one race, its checks included. Without --benchmark nothing is timed, and a test may take long.
RACE_SECONDS = {"test": 60.0, "quick": 16.0, "full": 90.0}


class OverBudget(Exception):
    """The next part of a row does not fit its time; the message is the reason as a sentence."""


@dataclass
class Budget:
    """The seconds that a row may take from now on."""

    seconds: float
    start: float = field(default_factory=lambda: time.perf_counter())

    @property
    def used(self) -> float:
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        return self.seconds - self.used

    def need(self, seconds: float, step: str) -> None:
        """Raise OverBudget unless a step of about this many seconds fits."""
        if seconds > self.left:
            about = f", about {seconds:.2g} s," if seconds else ""
            raise OverBudget(f"{step}{about} would go beyond the {self.seconds:.0f} s of a row")

    def excuse(self, seconds: float) -> None:
        """Extend it by what a compiler took: done once, it leaves the row no longer than others."""
        self.seconds += seconds


@dataclass(frozen=True)
class LeftOut:
    """A row that was given up."""

    row: str
    seconds: float  # that it took until then
    reason: str
