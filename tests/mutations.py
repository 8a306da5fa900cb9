"""Files broken at random, the same ones for the same seed."""

from __future__ import annotations

import numpy as np

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
SPLICES = (b"\0" * 8, b"\xff" * 8, b"{}", b"[[[[", b"NaN", b"-1", b"99999999999", b'"')


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight faults: bytes changed, cut out, repeated, spliced in, or the end missing.

    Half of them are near the beginning, where headers are.
    """
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if not out:
            break
        span = len(out) if rng.random() < 0.5 else min(len(out), 512)
        at = int(rng.integers(span))
        length = int(rng.integers(1, 17))
        kind = rng.integers(7)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.integers(256))
        elif kind == 2:
            out[at] = int(rng.choice(INTERESTING))
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            out[at:at] = SPLICES[int(rng.integers(len(SPLICES)))]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)
