"""Whether half precision pays on this processor: measured, since its name and flags do not tell."""

from __future__ import annotations

import time

import torch

from ..networks.network import Network

SIDE = 64  # of the smallest tile; on less, the overhead of each call hides the arithmetic
SECONDS = 0.05  # after which nothing is repeated
HOPELESS = 4.0


def slowdown(net: Network, dtype: torch.dtype, scale: float = 4) -> float:
    """How many times as long as in float32 a tile takes under autocast in `dtype`, on a CPU.

    torch has no quick products of half types without the instructions for them, and the rest of a
    network is not worth the conversions everywhere. The network itself is timed: the shortest of a
    few runs each, in turns, after one on a patch of a sixteenth, which is enough to see the worst.

    Args:
        net: in evaluation mode, on a CPU.
        dtype: bfloat16 or float16.
        scale: by which a continuous network enlarges.
    """

    def seconds(side: int, half: bool) -> float:
        out = round(side * scale)
        size = {"size": (out, out)} if net.scale is None else {}
        with torch.autocast("cpu", dtype, enabled=half):
            start = time.perf_counter()
            net(torch.full((1, 3, side, side), 0.5), **size)
            return time.perf_counter() - start

    with torch.inference_mode():
        plain, half = (seconds(SIDE // 4, half) for half in (False, True))
        if half > HOPELESS * plain and half > SECONDS:
            return half / plain
        plain, half = seconds(SIDE, False), seconds(SIDE, True)
        spent = plain + half
        while spent < SECONDS:
            again = seconds(SIDE, False), seconds(SIDE, True)
            plain, half = min(plain, again[0]), min(half, again[1])
            spent += sum(again)
    return half / plain
