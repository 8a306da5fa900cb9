"""Whether half precision pays on this processor: measured, since its name and flags do not tell."""

from __future__ import annotations

import time

import torch

from ..networks.network import Network

SIDE = 64  # of the map that is timed; on a smaller one, call overhead hides the arithmetic
SECONDS = 0.05  # of timing in all: shorter runs are repeated
HOPELESS = 4.0
# Processor time, which other processes do not lengthen, unless it ticks too slowly (Windows).
CLOCK = "process_time" if time.get_clock_info("process_time").resolution < 1e-4 else "perf_counter"


def slowdown(net: Network, dtype: torch.dtype, scale: float = 4) -> float:
    """How many times as long as in float32 a tile takes under autocast in `dtype`, on a CPU.

    torch has no quick products of half types without the instructions for them, and the rest of a
    network is not worth the conversions everywhere. The network itself is timed: the shortest of a
    few runs each, in turns, after one on a patch of a sixteenth, which is enough to see the worst.
    One thread computes: waiting for each other, on a busy machine, takes more time than the tile.

    Args:
        net: in evaluation mode, on a CPU.
        dtype: bfloat16 or float16.
        scale: by which a continuous network enlarges.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _measured(net, dtype, scale)
    finally:
        torch.set_num_threads(threads)


def _measured(net: Network, dtype: torch.dtype, scale: float) -> float:
    clock = getattr(time, CLOCK)

    def seconds(side: int, half: bool) -> float:
        out = round(side * scale)
        size = {"size": (out, out)} if net.scale is None else {}
        image = torch.full((1, 3, side, side), 0.5)
        with torch.autocast("cpu", dtype, enabled=half):
            start = clock()
            net(image, **size)
            return clock() - start

    plain, half = seconds(SIDE // 4, False), seconds(SIDE // 4, True)
    if half > HOPELESS * plain and half > SECONDS:
        return half / plain
    plain, half = seconds(SIDE, False), seconds(SIDE, True)
    spent = plain + half
    while spent < SECONDS:
        again = seconds(SIDE, False), seconds(SIDE, True)
        plain, half = min(plain, again[0]), min(half, again[1])
        spent += sum(again)
    return half / plain
