"""Attention in rectangular and overlapping windows in the tables of the shared tests."""

from __future__ import annotations

import torch

from c2d_kernels.ops.overlapping_window_attention.op import flops
from tests.kernels.rows import (
    B,
    Case,
    Export,
    Formula,
    columns,
    empty,
    flat,
    grow,
    refusals,
    rows,
    to,
)

NONE = (0, 0)


def attention(
    name: str,
    size: tuple[int, int, int],
    channels: int,
    *,
    window: tuple[int, int],
    heads: int = 2,
    overlap: tuple[int, int] = NONE,
    shift: tuple[int, int] = NONE,
    labels: int = 0,
) -> Case:
    """With `labels`, pixels of that many regions do not meet, in stripes that windows cut."""

    def stripes() -> torch.Tensor:
        rows, columns = torch.arange(size[1])[:, None], torch.arange(size[2])
        return (rows // 3 + columns // 5) % labels

    keys = (window[0] + 2 * overlap[0]) * (window[1] + 2 * overlap[1])
    return Case(
        name,
        "overlapping_window_attention",
        {
            "q": (*size, channels),
            "k": (*size, channels),
            "v": (*size, channels),
            "bias": (heads, window[0] * window[1], keys),
        },
        {"window_size": window, "num_heads": heads, "overlap": overlap, "shift": shift},
        ("q", "k", "v"),
        {"regions": stripes} if labels else {},
        result="q",
        windowed=True,
    )


SMALL = [
    attention("overlapping", (1, 4, 4), 4, window=(2, 2), overlap=(1, 1)),
    attention("rectangular", (1, 4, 8), 4, window=(2, 4), shift=(1, 2)),
]
AWKWARD = [
    attention("overlapping-hat", (1, 16, 24), 60, window=(8, 8), heads=6, overlap=(2, 2)),
    attention("overlapping-one-way", (1, 6, 4), 6, window=(3, 2), heads=1, overlap=(0, 1)),
    attention("overlapping-wide", (2, 3, 4), 5, window=(1, 2), heads=1, overlap=(4, 3)),
    attention("overlapping-no-batch", (0, 4, 4), 4, window=(2, 2), overlap=(1, 1)),
    attention("rectangular-dat", (1, 16, 32), 30, window=(8, 16), heads=3, shift=(4, 8)),
    attention("rectangular-one-way", (2, 6, 5), 4, window=(3, 1), shift=(2, 0)),
    attention("regions", (2, 8, 12), 6, window=(4, 6), labels=3),
    attention("regions-shifted", (1, 8, 12), 4, window=(4, 3), shift=(2, 1), labels=2),
    attention("rectangular-1x1", (1, 1, 1), 2, window=(1, 1)),
]
FLOPS = {  # of the small cases, by hand
    "overlapping": 4 * 16 * 4 * 16,
    "rectangular": 4 * 32 * 4 * 8,
}
FORMULAS = [
    Formula(flops(1, 64, 64, 60, 144), 2 * 2 * 4096 * 144 * 60, "q k^T and its product"),
]
MAP = {0: B, 1: 4 * rows, 2: 4 * columns}
EXPORTS = [
    Export(
        "overlapping",
        {"q": MAP, "k": MAP, "v": MAP},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
    Export(
        "rectangular",
        {"q": MAP, "k": MAP, "v": MAP},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
]
REFUSALS = [
    *refusals(
        SMALL[0],
        ({"q": flat}, ValueError, "q must have the shape (B, H, W, C) = (*, *"),
        (
            {"q": empty(1), "k": empty(1), "v": empty(1)},
            ValueError,
            "q must have at least one row, column and",
        ),
        ({"k": grow(3)}, ValueError, "k must have the shape (B, H, W, C) = (1, 4, 4, 4), got"),
        ({"v": to(torch.float32)}, TypeError, "v must have the dtype of q, float64"),
        (
            {"q": grow(1), "k": grow(1), "v": grow(1)},
            ValueError,
            "q must have a height and width that are multiples of the window 2x2, got 5x4: pad",
        ),
        ({"window_size": 0}, ValueError, "window_size must be at least 1, got 0."),
        ({"window_size": (2, 2, 2)}, ValueError, "window_size must be one int or (height, w"),
        ({"num_heads": 3}, ValueError, "num_heads must divide the channels of q, 4, got 3"),
        ({"overlap": -1}, ValueError, "overlap must be at least 0, got -1."),
        ({"overlap": 1.5}, TypeError, "overlap must be one int or (height, width), got a"),
        ({"shift": 1}, ValueError, "windows are shifted or overlap, not both: leave"),
        ({"shift": 2}, ValueError, "shift must be below window_size, (2, 2), got (2, 2)."),
        ({"bias": grow(2)}, ValueError, "bias must have the shape (heads, N, M) = (2, 4, 16), g"),
        ({"bias": to(torch.int32)}, TypeError, "bias must be float32, bf"),
        (
            {"regions": torch.zeros(4, 4).int()},
            ValueError,
            "windows that overlap have no regions: leave out regions or overlap.",
        ),
    ),
    *refusals(
        SMALL[1],
        (
            {"regions": torch.zeros(4, 4).int()},
            ValueError,
            "regions must have the shape (H, W) = (4, 8), got (4, 4).",
        ),
        ({"regions": torch.zeros(4, 8)}, TypeError, "regions must hold integers, got fl"),
        ({"regions": [[0]]}, TypeError, "regions must be a torch.Tensor, got list."),
    ),
]
