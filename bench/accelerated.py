"""`python -m bench.accelerated`: what accelerate() makes of networks as their authors publish them.

python -m bench.accelerated --clones FOLDER     # docs/accelerate.md; repositories are cloned there
python -m bench.accelerated --clones FOLDER --only "SwinIR, lightweight"    # its row alone
python -m bench.accelerated --clones FOLDER --sides 32    # printed, not written

Both sides run in this process, in turns, on random images and the authors' initial weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from bench import machine
from bench.authors import NETWORKS, Network, stand_ins
from bench.stored import markdown
from c2d_kernels import accelerate

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "accelerate.md"
BEGIN, END = "<!-- accelerated: begin -->", "<!-- accelerated: end -->"
SIDES = [64, 128]
_SECONDS = 6.0  # of pairs, for each size and number of threads
_LEAST, _MOST = 3, 15
_LONG = 30.0  # seconds: beyond that one pair is enough


@dataclass
class Times:
    """Times of one forward, as written and accelerated, in seconds."""

    wall: tuple[float, float]
    processor: tuple[float, float]

    def __str__(self) -> str:
        """Both ratios: wall time, and processor time in brackets."""
        wall, processor = (each[0] / each[1] for each in (self.wall, self.processor))
        return f"{wall:.2f} ({processor:.2f})"


@torch.no_grad()
def race(plain: nn.Module, ours: nn.Module, image: Tensor) -> Times:
    """The medians of pairs, the first of which is not counted."""
    samples: list[list[tuple[float, float]]] = [[], []]
    start = time.perf_counter()
    while len(samples[0]) < _MOST + 1:
        spent = time.perf_counter() - start
        if len(samples[0]) > (_LEAST if spent < _LONG else 1) and spent > _SECONDS:
            break
        for net, found in zip((plain, ours), samples, strict=True):
            begin = time.perf_counter(), time.process_time()
            net(image)
            found.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    medians = [[median(each[1:]) for each in zip(*found, strict=True)] for found in samples]
    wall, processor = zip(*medians, strict=True)
    return Times(wall, processor)


def difference(plain: nn.Module, ours: nn.Module, image: Tensor) -> float:
    """Relative to the largest output; networks that draw at random draw the same."""
    outputs = []
    for net in (plain, ours):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(net(image))
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())


def measure(network: Network, clones: Path, sides: Sequence[int]) -> list[str]:
    """A row of the table."""
    torch.manual_seed(0)
    plain = network.make(clones)
    ours = copy.deepcopy(plain)
    begin = time.perf_counter()
    report = accelerate(ours)
    took = time.perf_counter() - begin
    row = [f"{len(report.replaced)}", f"{len(report.left)}", f"{took:.1f}"]
    row.append(f"{difference(plain, ours, torch.rand(1, 3, 64, 64)):.0e}")
    for side in sides:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            row.append(str(race(plain, ours, torch.rand(1, 3, side, side))))
    torch.set_num_threads(1)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.accelerated", description=__doc__)
    parser.add_argument("--clones", type=Path, required=True, help="folder of the repositories")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES)
    options = parser.parse_args(arguments)
    stand_ins()
    torch.set_num_threads(1)
    headings = ["network", "replaced", "left", "accelerate(), s", "difference"]
    for side in options.sides:
        headings += [f"{side}², 1 thread", f"{side}², 2 threads"]
    rows = []
    for name in options.only:
        rows.append([name, *measure(NETWORKS[name], options.clones, options.sides)])
        print(" | ".join(rows[-1]), flush=True)
    if options.sides == SIDES:
        about = machine.describe()
        line = f"*{about['processor']}, {about['isa']}, torch {about['torch']}.*"
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(updated(text, line, headings, rows), encoding="utf-8")
        print(f"written: {len(rows)} rows of {DOCUMENT}")
    return 0


def updated(text: str, about: str, headings: list[str], rows: list[list[str]]) -> str:
    """The document with these rows, in the table of their machine; older rows of theirs go."""
    before, rest = text.split(BEGIN)
    block, after = rest.split(END)
    tables: dict[str, list[list[str]]] = {}
    machine_line = ""
    for line in block.splitlines():
        if line.startswith("*"):
            machine_line = line
        elif line.startswith("| ") and not line.startswith(("| network", "| ---")):
            row = [cell.strip() for cell in line.strip("|").split("|")]
            tables.setdefault(machine_line, []).append(row)
    new = {row[0] for row in rows}
    for name, old in tables.items():
        tables[name] = [row for row in old if row[0] not in new]
    tables[about] = sorted(
        tables.get(about, []) + rows, key=lambda row: list(NETWORKS).index(row[0])
    )
    lines = []
    for name, found in tables.items():
        if found:
            lines += ["", name, "", *markdown(headings, found)]
    return "\n".join([f"{before}{BEGIN}", *lines[1:], f"{END}{after}"])


if __name__ == "__main__":
    sys.exit(main())
