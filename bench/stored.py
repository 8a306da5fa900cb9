"""A run's files in bench/results, and the small arithmetic of its tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.budget import LeftOut

GROWTH_FROM = 256  # smaller images do not fill the machine


Row = dict[str, object]


class Results:
    """One file of results."""

    def __init__(self, path: Path) -> None:
        run = json.loads(path.read_text(encoding="utf-8"))
        self.name, self.machine, self.commit = path.stem, run["machine_info"], run["commit_info"]
        self.size, self.refused, self.absent = run["size"], run["refused"], run["absent"]
        self.left_out = [LeftOut(**row) for row in run.get("left_out", [])]
        self.slowest = list(run.get("slowest", {}).items())
        rows = [entry["extra_info"] for entry in run["benchmarks"]]
        self.races = [row for row in rows if "ratio" in row and "kind" not in row]
        self.growth = [row for row in rows if row.get("kind") == "growth"]
        self.commands = [row for row in rows if row.get("kind") == "end to end"]

    def subjects(self) -> list[str]:
        """Operators and networks, in the order of the run."""
        return list(dict.fromkeys(str(row["subject"]) for row in self.races))

    def race(self, **wanted: object) -> Row | None:
        """The first row with these values."""
        for row in self.races:
            if all(row[name] == value for name, value in wanted.items()):
                return row
        return None


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table; all columns but those of words to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    numeric = [
        all(row[place][:1].isdigit() or row[place] in ("", "-") for row in rows)
        for place in range(len(headings))
    ]
    rule = ["---:" if right else "---" for right in numeric]
    return [f"| {' | '.join(row)} |" for row in ([*headings], rule, *rows)]


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The growth exponent: the slope of log(value) over log(size), by least squares."""
    points = [(size, value) for size, value in points if value > 0]
    if len(points) < 2:
        return None
    sizes, values = np.log(np.array(points)).T
    return float(np.polyfit(sizes, values, 1)[0])
