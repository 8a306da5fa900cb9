"""HAT's overlapping cross attention and DAT's rectangular windows against SDPA and the reference.

SDPA gets its dense bias and mask in one, made before the clock starts, where no gradient of the
bias is wanted; it still has to roll, unfold and merge.
"""

from __future__ import annotations

import pytest
from torch import Tensor

import c2d_kernels
from bench.attention_peers import sdpa_of_rectangles
from bench.contenders import COMPILERS, REFERENCE, Contender, kernels_of, peer
from bench.workloads import Workload, normal, table

SHAPES = {
    "quick": {
        "HAT 64x48 w16 in 24": {"window": (16, 16), "overlap": (4, 4)},
        "DAT 64x48 w8x16 shift 4x8": {
            "window": (8, 16),
            "shift": (4, 8),
            "channels": 30,
            "heads": 3,
        },
    },
    "full": {
        "HAT 192x128 w16 in 24": {
            "height": 128,
            "width": 192,
            "window": (16, 16),
            "overlap": (4, 4),
        },
        "DAT 256x192 w8x32 shift 4x16": {
            "height": 192,
            "width": 256,
            "window": (8, 32),
            "shift": (4, 16),
            "channels": 30,
            "heads": 3,
        },
    },
}


def attention(
    window: tuple[int, int],
    height: int = 48,
    width: int = 64,
    overlap: tuple[int, int] = (0, 0),
    shift: tuple[int, int] = (0, 0),
    channels: int = 180,
    heads: int = 6,
) -> dict[str, object]:
    """HAT's layer of 180 channels, or half of the channels of one of DAT light's."""
    layer = {"window_size": window, "num_heads": heads, "overlap": overlap, "shift": shift}
    queries = window[0] * window[1]
    keys = (window[0] + 2 * overlap[0]) * (window[1] + 2 * overlap[1])

    def tensors(generator):
        return {
            "q": normal(generator, 1, height, width, channels),
            "k": normal(generator, 1, height, width, channels),
            "v": normal(generator, 1, height, width, channels),
            "bias": normal(generator, heads, queries, keys),
        }

    def function(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.overlapping_window_attention(**tensors, **layer)

    return {
        "function": function,
        "tensors": tensors,
        "half": frozenset({"q", "k", "v"}),
        "peers": {"SDPA": lambda tensors, backward: sdpa_of_rectangles(tensors, backward, **layer)},
    }


@pytest.mark.race(
    workloads=table("overlapping_window_attention", SHAPES, attention),
    contenders=[
        REFERENCE,
        *kernels_of("overlapping_window_attention"),
        peer("SDPA"),
        *COMPILERS,
    ],
)
def test_overlapping_window_attention(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
