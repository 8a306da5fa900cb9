"""The report of `accelerate` on a network, which also undoes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from .plan import restore


class AccelerationError(RuntimeError):
    """Layers were left as they are, and `strict` did not allow it."""


class Replaced(NamedTuple):
    """A layer that runs on operators."""

    path: str
    kind: str
    operators: str


class Left(NamedTuple):
    """A layer that stays as it is."""

    path: str
    kind: str
    reason: str


@dataclass
class Report:
    """Which layers run on operators and which stay as they are, and why; prints as a table.

    As a context manager it reverts at its end.
    """

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    _plain: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list, repr=False)

    def revert(self) -> None:
        """Give each layer its class back. A second call does nothing."""
        for layer, kind in self._plain:
            restore(layer, kind)
        self._plain.clear()

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *exception: object) -> None:
        self.revert()

    def __str__(self) -> str:
        rows = [("replaced", row.kind, row.operators) for row in self.replaced]
        rows += [("left", row.kind, row.reason) for row in self.left]
        lines = [
            f"{what:8}  {count:3} x {kind}: {why}"
            for (what, kind, why), count in Counter(rows).items()
        ]
        return "\n".join(lines) or "no layer was recognised"
