"""Window attention, of cosines and permuted too, in the tables of the shared tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from c2d_kernels.ops.window_attention.op import flops, permuted_flops
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


def attention(
    name: str,
    batch: int,
    height: int,
    width: int,
    head_dim: int,
    *,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    return Case(
        name,
        "window_attention",
        {
            "qkv": (batch, height, width, 3 * heads * head_dim),
            "bias_table": ((2 * window - 1) ** 2, heads),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("qkv",),
        result="qkv",
        windowed=True,
    )


def permuted(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    return Case(
        name,
        "permuted_window_attention",
        {
            "q": (batch, height, width, channels),
            "kv": (batch, height, width, channels // 2),
            "bias_table": ((window - 1) ** 2, heads),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("q", "kv"),
        result="q",
        windowed=True,
    )


def cosine(name: str, *sizes: int, heads: int = 2, **options: int) -> Case:
    """As attention, with a scale for each head's cosines."""
    case = attention(name, *sizes, heads=heads, **options)
    shapes = {**case.shapes, "cosine_scale": (heads,)}
    return replace(case, operator="cosine_window_attention", shapes=shapes)


SMALL = [
    attention("attention", 1, 4, 6, 2, window=2, shift=1),
    cosine("cosine", 1, 4, 6, 2, window=2, shift=1),
    permuted("permuted", 1, 8, 4, 4),
]
AWKWARD = [
    attention("attention-head-dim-10", 1, 16, 24, 10, window=8, heads=6, shift=4),
    attention("attention-one-window", 2, 4, 4, 5),
    attention("attention-odd-shift", 1, 9, 6, 3, window=3, heads=1, shift=1),
    attention("attention-no-batch", 0, 8, 4, 2),
    attention("attention-1x1", 1, 1, 1, 2, window=1, shift=0),
    cosine("cosine-head-dim-10", 1, 16, 24, 10, window=8, heads=6, shift=4),
    cosine("cosine-head-dim-30", 1, 16, 8, 30, window=8, heads=2, shift=0),
    cosine("cosine-odd-shift", 1, 9, 6, 3, window=3, heads=1, shift=1),
    cosine("cosine-no-batch", 0, 8, 4, 2),
    cosine("cosine-1x1", 1, 1, 1, 2, window=1, shift=0),
    permuted("permuted-head-dim-10", 1, 8, 16, 20, window=8, shift=4),
    permuted("permuted-one-window", 2, 4, 4, 8, shift=0),
    permuted("permuted-no-batch", 0, 8, 4, 4),
    permuted("permuted-2x2", 1, 2, 2, 4, window=2, shift=0),
]
FLOPS = {  # of the small cases, by hand
    "attention": 4 * 24 * 4 * 4,
    "cosine": 4 * 24 * 4 * 4,
    "permuted": 32 * 16 * 4,
}
FORMULAS = [
    Formula(flops(1, 64, 64, 60, 8), 2 * 2 * 4096 * 64 * 60, "q k^T and its product"),
    Formula(permuted_flops(1, 64, 64, 60, 16), 2 * 2 * 4096 * 64 * 60, "a quarter"),
]
MAP = {0: B, 1: 4 * rows, 2: 4 * columns}
EXPORTS = [
    Export(
        "attention",
        {"qkv": {0: B, 1: 2 * rows, 2: 2 * columns}},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
    Export(
        "cosine",
        {"qkv": {0: B, 1: 2 * rows, 2: 2 * columns}},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
    Export(
        "permuted",
        {"q": MAP, "kv": MAP},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
]
REFUSALS = [
    *refusals(
        SMALL[0],
        ({"qkv": flat}, ValueError, "qkv must have the shape (B, H, W, C) = (*, *"),
        ({"qkv": empty(1)}, ValueError, "qkv must have at least one row, column and"),
        (
            {"qkv": grow(1)},
            ValueError,
            "qkv must have a height and width that are multiples of the window 2x2, got 5x6: pad",
        ),
        ({"qkv": grow(3)}, ValueError, "3 * num_heads must divide the channels of"),
        ({"window_size": 0}, ValueError, "window_size must be at least 1, got 0."),
        ({"window_size": 4.0}, TypeError, "window_size must be an int, got float."),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0."),
        ({"shift": 2}, ValueError, "shift must be from 0 to window_size - 1, 1, got 2"),
        ({"shift": -1}, ValueError, "shift must be from 0 to window_size - 1, 1, got"),
        (
            {"bias_table": grow(0)},
            ValueError,
            "bias_table must have the shape ((2w-1)^2, heads) = (9, 2), got (10, 2).",
        ),
        ({"bias_table": to(torch.int32)}, TypeError, "bias_table must be float32, bf"),
    ),
    *refusals(
        SMALL[1],
        ({"qkv": grow(3)}, ValueError, "3 * num_heads must divide the channels of"),
        ({"window_size": 4.0}, TypeError, "window_size must be an int, got float."),
        ({"shift": 2}, ValueError, "shift must be from 0 to window_size - 1, 1, got 2"),
        ({"cosine_scale": grow(0)}, ValueError, "cosine_scale must have the shape (heads,) = (2)"),
        ({"cosine_scale": to(torch.int32)}, TypeError, "cosine_scale must be float32, bf"),
    ),
    *refusals(
        SMALL[2],
        ({"kv": grow(3)}, ValueError, "kv must have the shape (B, H, W, C/2) = (1, 8"),
        ({"kv": to(torch.float32)}, TypeError, "kv must have the dtype of q, float64"),
        ({"shift": 1}, ValueError, "shift must be even, since keys are cells of 2x2"),
        ({"window_size": 1, "shift": 0}, ValueError, "window_size must be even, since"),
        ({"num_heads": 3}, ValueError, "num_heads must divide the channels of q, 4"),
        ({"bias_table": grow(1)}, ValueError, "bias_table must have the shape ((w-1)^"),
    ),
]
