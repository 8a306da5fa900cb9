"""Channel correlation in the tables of the shared tests."""

from __future__ import annotations

import torch

from c2d_kernels.ops.channel_correlation.op import flops
from tests.kernels.rows import B, Case, Export, Formula, H, W, empty, grow, refusals, to


def channel(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    window: int | tuple[int, int] = (4, 3),
) -> Case:
    shape = (batch, height, width, channels)
    return Case(
        name,
        "channel_correlation",
        {"q": shape, "v": shape},
        {"window_size": window},
        ("q", "v"),
        result="q",
        windowed=True,
    )


SMALL = [
    channel("channel", 2, 5, 4, 3),
]
AWKWARD = [
    channel("channel-borders", 2, 13, 7, 6, window=(4, 8)),
    channel("channel-window-over-map", 1, 5, 9, 10, window=64),
    channel("channel-1x1", 1, 1, 1, 4, window=8),
    channel("channel-one-column", 3, 21, 1, 5, window=8),
    channel("channel-many-channels", 1, 9, 11, 70, window=(5, 4)),
    channel("channel-no-batch", 0, 6, 5, 4),
]
FLOPS = {  # of the small cases, by hand
    "channel": 4 * 2 * 20 * 3 * 3,
}
FORMULAS = [
    Formula(flops(1, 64, 64, 30), 2 * 2 * 4096 * 30 * 30, "q^T v and v M^T"),
]
EXPORTS = [
    Export(
        "channel",
        {"q": {0: B, 1: H, 2: W}, "v": {0: B, 1: H, 2: W}},
        {B: 2, H: 9, W: 7},
        {B: 1, H: 6, W: 20},
    ),
]
REFUSALS = refusals(
    SMALL[0],
    ({"v": grow(2)}, ValueError, "v must have the shape (B, H, W, C) = (2, 5, 4, "),
    ({"v": to(torch.float32)}, TypeError, "v must have the dtype of q, float64, g"),
    ({"window_size": 0}, ValueError, "window_size must be at least 1, got 0."),
    ({"window_size": (4, 4, 4)}, ValueError, "window_size must be one int or (hei"),
    ({"window_size": "8"}, TypeError, "window_size must be one int or (height, wi"),
    ({"q": empty(3)}, ValueError, "q must have at least one row, column and chan"),
)
