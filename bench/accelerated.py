"""`python -m bench.accelerated`: what accelerate() makes of networks as their authors publish them.

python -m bench.accelerated --clones FOLDER     # docs/accelerate.md; repositories are cloned there
python -m bench.accelerated --clones FOLDER --only "SwinIR, lightweight"    # its row alone
python -m bench.accelerated --clones FOLDER --sides 32    # printed, not written
python -m bench.accelerated --clones FOLDER --peers    # instead: against ONNX Runtime and OpenVINO

Both sides run in this process, in turns, on random images and the authors' initial weights; MambaIR
runs on the drop-in for mamba_ssm, and against the loop over tokens that mamba_ssm has for a CPU.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from bench import machine
from bench.authors import NETWORKS, InALoop, Network, stand_ins
from bench.runtimes import RUNTIMES, to_onnx
from bench.stored import markdown
from c2d_kernels import accelerate

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "accelerate.md"
BEGIN, END = "<!-- accelerated: begin -->", "<!-- accelerated: end -->"
PEERS_BEGIN, PEERS_END = "<!-- peers: begin -->", "<!-- peers: end -->"
WITH_PEERS = ("SwinIR, lightweight", "SwinIR, classical M")
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
def medians(contenders: Sequence[Callable[[Tensor], Tensor]], image: Tensor) -> list[list[float]]:
    """Wall and processor time of each, the medians of turns, the first of which is not counted."""
    samples: list[list[tuple[float, float]]] = [[] for _ in contenders]
    start = time.perf_counter()
    while len(samples[0]) < _MOST + 1:
        spent = time.perf_counter() - start
        if len(samples[0]) > (_LEAST if spent < _LONG else 1) and spent > _SECONDS:
            break
        for net, found in zip(contenders, samples, strict=True):
            begin = time.perf_counter(), time.process_time()
            net(image)
            found.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return [[median(each[1:]) for each in zip(*found, strict=True)] for found in samples]


def race(plain: nn.Module, ours: nn.Module, image: Tensor) -> Times:
    """Both in turns."""
    wall, processor = zip(*medians((plain, ours), image), strict=True)
    return Times(wall, processor)


def peers(name: str, clones: Path, sides: Sequence[int]) -> list[list[str]]:
    """Rows of the second table: wall times over ours, of the same weights in the same process."""
    torch.manual_seed(0)
    plain = NETWORKS[name].make(clones)
    ours, rows = copy.deepcopy(plain), []
    accelerate(ours)
    for side in sides:
        image = torch.rand(1, 3, side, side)
        model, expected = to_onnx(plain, image), plain(image)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            others = [run(model) for _, _, run in RUNTIMES]
            for other in others:
                wrong = (other(image) - expected).abs().max() / expected.abs().max()
                assert wrong < 1e-4, f"{name}: a peer is off by {wrong:.0e}"
            found = [wall for wall, _ in medians((ours, plain, *others), image)]
            ratios = [f"{each / found[0]:.2f}" for each in found[1:]]
            rows.append([name, f"{side}²", str(threads), *ratios])
            print(" | ".join(rows[-1]), flush=True)
    torch.set_num_threads(1)
    return rows


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
    if network.loop:
        plain, row = InALoop(plain), ["its scan", "0", ""]
    else:
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
    parser.add_argument("--peers", action="store_true", help="the second table")
    options = parser.parse_args(arguments)
    stand_ins()
    torch.set_num_threads(1)
    about = machine.describe()
    line = f"*{about['processor']}, {about['isa']}, torch {about['torch']}.*"
    if options.peers:
        with torch.no_grad():
            rows = [
                row for name in WITH_PEERS for row in peers(name, options.clones, options.sides)
            ]
        headings = ["network", "size", "threads", "eager", *(name for name, _, _ in RUNTIMES)]
        text = DOCUMENT.read_text(encoding="utf-8")
        before, rest = text.split(PEERS_BEGIN)
        block = "\n".join(["", line, "", *markdown(headings, rows), ""])
        DOCUMENT.write_text(f"{before}{PEERS_BEGIN}{block}{PEERS_END}{rest.split(PEERS_END)[1]}")
        return 0
    headings = ["network", "replaced", "left", "accelerate(), s", "difference"]
    for side in options.sides:
        headings += [f"{side}², 1 thread", f"{side}², 2 threads"]
    rows = []
    for name in options.only:
        rows.append([name, *measure(NETWORKS[name], options.clones, options.sides)])
        print(" | ".join(rows[-1]), flush=True)
    if options.sides == SIDES:
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
