"""Spatial correlation by Triton kernels (triton_kernels.py)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels import triton_support
from c2d_kernels.dispatch import Kernel

MAX_WINDOW = 64  # tokens a side; the bias gradient holds heads * N * cells numbers
MAX_CELLS = 64
MAX_HEAD_DIM = 32
PART = 512  # tokens of a window that one program has at most
PROGRAMS = 1024  # with fewer, heads and runs of windows become programs of their own
RUNS = 128  # of windows, in the bias gradient: partial sums a head

Pair = tuple[int, int]  # (height, width)


def _can_run(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    window_height: int,
    window_width: int,
    base_height: int,
    base_width: int,
    num_heads: int,
) -> str | None:
    window, cells = max(window_height, window_width), base_height * base_width
    head_dim = q.shape[-1] // num_heads
    if window > MAX_WINDOW:
        return f"it takes windows up to {MAX_WINDOW}, and this one is {window}"
    if cells > MAX_CELLS:
        return f"it takes up to {MAX_CELLS} cells a window, and these are {cells}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes heads of up to {MAX_HEAD_DIM} channels, and these have {head_dim}"
    return triton_support.refusal(q)


def _forward(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    window_height: int,
    window_width: int,
    base_height: int,
    base_width: int,
    num_heads: int,
) -> Tensor:
    from . import triton_kernels as kernels

    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    window, base = (window_height, window_width), (base_height, base_width)
    q, v = map(triton_support.channels_last, (q, v))
    linear = _linear(weight, weight_bias, q.dtype)
    grid, span, group = _grid(q, window, num_heads)
    with triton_support.on_device(q):
        cells = _reduce(v, linear, window, base) if grid[1] > 1 else v
        kernels.forward[grid](
            *(q, cells, *linear, _pool(bias_table, window, base, linear[0].dtype), out),
            *map(triton_support.strides, (q, cells, out)),
            *(_map_size(q, window), num_heads, group, weight.numel(), span),
            **_constants(q, window, base, num_heads),
        )
    return out


def _backward(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    window_height: int,
    window_width: int,
    base_height: int,
    base_width: int,
    num_heads: int,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    from . import triton_kernels as kernels

    inputs = (q, v, weight, weight_bias, bias_table)
    if q.numel() == 0:
        return tuple(torch.zeros_like(x) if n else None for x, n in zip(inputs, mask, strict=True))
    window, base = (window_height, window_width), (base_height, base_width)
    grad, q, v = map(triton_support.channels_last, (grad, q, v))
    linear, area = _linear(weight, weight_bias, q.dtype), weight.numel()
    sums, size = linear[0].dtype, _map_size(q, window)
    grid, span, group = _grid(q, window, num_heads)
    windows, parts, _ = grid
    dq, dv, dtable = q.new_empty(q.shape), v.new_empty(v.shape), None
    with triton_support.on_device(q):
        cells = _reduce(v, linear, window, base) if parts > 1 else v
        if any(mask[:4]):
            dweight = q.new_empty((windows * num_heads if parts == 1 else 0, area + 1), dtype=sums)
            partial = q.new_empty((parts, *cells.shape) if parts > 1 else 0, dtype=sums)
            kernels.backward[grid](
                *(q, cells, *linear, _pool(bias_table, window, base, sums), grad),
                *(dq, dv, dweight, partial),
                *map(triton_support.strides, (q, cells, grad, dq)),
                *(size, num_heads, group, area, span),
                **_constants(q, window, base, num_heads),
            )
            if parts > 1:
                dweight = _spread(partial, v, dv, linear, window, base)
            dweight, dbias = dweight.sum(0).split((area, 1))
        if mask[4]:
            constants = _bias_constants(q, window, base, num_heads)
            tiles = _count(window_height * window_width, constants["TILE"])
            runs = min(windows, RUNS, _count(PROGRAMS, num_heads * tiles))
            run = _count(windows, runs)
            runs = _count(windows, run)
            shape = (runs, num_heads, *window, *base)
            partial = q.new_empty(shape, dtype=sums)
            kernels.backward_bias[num_heads, runs, tiles](
                *(cells, *linear, grad, partial),
                *map(triton_support.strides, (cells, grad)),
                *(size, num_heads, windows, run, area),
                **constants,
            )
            dtable = _unpool(partial.sum(0), window, base).to(bias_table.dtype)
    return (
        dq if mask[0] else None,
        dv if mask[1] else None,
        dweight.to(weight.dtype, copy=True).reshape(weight.shape) if mask[2] else None,
        dbias.to(weight_bias.dtype, copy=True) if mask[3] else None,
        dtable,
    )


def _linear(weight: Tensor, weight_bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The parameters of p in the type of the sums."""
    sums = torch.promote_types(dtype, torch.float32)
    return weight.to(sums).contiguous(), weight_bias.to(sums)


def _reduce(v: Tensor, linear: tuple[Tensor, Tensor], window: Pair, base: Pair) -> Tensor:
    """p as a map (B, rows of cells, columns, C): made once, where windows are split."""
    from . import triton_kernels as kernels

    grid, size, constants = _cell_launch(v, window, base)
    p = v.new_empty(v.shape[0], *size, v.shape[-1])
    kernels.reduce[grid](
        *(v, *linear, p),
        *map(triton_support.strides, (v, p)),
        *(size, v.shape[-1], p.shape[:3].numel(), linear[0].numel()),
        **constants,
    )
    return p


def _spread(
    partial: Tensor, v: Tensor, dv: Tensor, linear: tuple[Tensor, Tensor], window: Pair, base: Pair
) -> Tensor:
    """Fill dv from partial, the parts of dp; return the programs' rows of dweight."""
    from . import triton_kernels as kernels

    grid, size, constants = _cell_launch(v, window, base)
    area = linear[0].numel()
    dweight = partial.new_empty(grid[0] * grid[1], area + 1)
    kernels.spread[grid](
        *(partial, v, linear[0], dv, dweight),
        *map(triton_support.strides, (partial[0], v, dv)),
        *(size, v.shape[-1], partial.shape[1:4].numel(), area, len(partial)),
        **constants,
    )
    return dweight


def _pool(bias_table: Tensor, window: Pair, base: Pair, sums: torch.dtype) -> Tensor:
    """(heads, 2h - R_y, 2w - R_x): the bias averaged over a cell, by the offset of its corner."""
    table = bias_table.to(sums).t().unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))
    return F.avg_pool2d(table, _cell(window, base), stride=1).contiguous()


def _unpool(scores: Tensor, window: Pair, base: Pair) -> Tensor:
    """The gradient of the table from that of P, (heads, h, w, base_height, base_width).

    First a sum over the pairs that share an offset. Laid out with 2b numbers per row and read with
    2b - 1, a b x b matrix has its diagonals in its columns: a sum in fixed order, where adding by
    index would be atomic. Then the adjoint of the pool, which is the pool of the padded map.
    """
    heads, (down, across) = scores.shape[0], _cell(window, base)
    scores = scores.reshape(heads, base[0], down, base[1], across, *base)
    scores = scores.permute(0, 2, 4, 3, 6, 1, 5)  # (heads, y in cell, x in cell, x, X, y, Y)
    for side in base:
        sheared = F.pad(scores.flip(-1), (0, side)).flatten(-2)[..., : side * (2 * side - 1)]
        summed = sheared.unflatten(-1, (side, 2 * side - 1)).sum(-2)
        scores = summed.movedim(-1, 3)  # (..., dy, x, X), then (..., dx, dy)
    pooled = scores.permute(0, 4, 1, 3, 2).flatten(3, 4).flatten(1, 2)
    padded = F.pad(pooled, (across - 1, across - 1, down - 1, down - 1))
    return F.avg_pool2d(padded, (down, across), stride=1).flatten(1).t()


def _grid(q: Tensor, window: Pair, heads: int) -> tuple[tuple[int, int, int], int, int]:
    """The grid (windows, parts of one, groups of heads), tokens of a part, heads of a group."""
    rows, columns = _map_size(q, window)
    windows, tokens = q.shape[0] * rows * columns, window[0] * window[1]
    parts = _count(tokens, PART)
    group = _count(heads, _count(PROGRAMS, windows * parts))
    return (windows, parts, _count(heads, group)), min(PART, tokens), group


def _cell_launch(
    v: Tensor, window: Pair, base: Pair
) -> tuple[tuple[int, int], Pair, dict[str, Any]]:
    """The grid over blocks of cells and channels, the map of cells, what is compiled."""
    down, across = _cell(window, base)
    size = v.shape[1] // down, v.shape[2] // across
    depth = min(64, triton_support.block(v.shape[-1]))
    constants = {
        "DOWN": down,
        "ACROSS": across,
        "BLOCK": 16,
        "DEPTH": depth,
        "SUM": triton_support.types(v.dtype)["SUM"],
        "num_warps": 4,
        "num_stages": 1,
    }
    return (_count(v.shape[0] * size[0] * size[1], 16), _count(v.shape[-1], depth)), size, constants


def _constants(q: Tensor, window: Pair, base: Pair, heads: int) -> dict[str, Any]:
    """Compile-time arguments of forward and backward."""
    tokens, head_dim = window[0] * window[1], q.shape[-1] // heads
    depth, cells = triton_support.block(head_dim), triton_support.block(base[0] * base[1])
    block = min(32, triton_support.block(tokens))
    return {
        "HEIGHT": window[0],
        "WIDTH": window[1],
        "BASE_HEIGHT": base[0],
        "BASE_WIDTH": base[1],
        "HEAD_DIM": head_dim,
        "DEPTH": depth,
        "CELLS": cells,
        "BLOCK": block,
        **triton_support.types(q.dtype),
        "GIVEN": tokens > PART,
        "num_warps": 2 if block * cells <= 256 else 4 if depth == 16 else 8,
        "num_stages": 1,
    }


def _bias_constants(q: Tensor, window: Pair, base: Pair, heads: int) -> dict[str, Any]:
    """Compile-time arguments of backward_bias."""
    constants = _constants(q, window, base, heads)
    del constants["BLOCK"]
    tile = min(64, triton_support.block(window[0] * window[1]))
    if q.dtype.itemsize > 2 and tile * constants["CELLS"] > 2048:
        constants["num_warps"] = 8
    return {**constants, "TILE": tile}


def _map_size(q: Tensor, window: Pair) -> Pair:
    """Rows and columns of windows."""
    return q.shape[1] // window[0], q.shape[2] // window[1]


def _cell(window: Pair, base: Pair) -> Pair:
    """Tokens of a cell."""
    return window[0] // base[0], window[1] // base[1]


def _count(size: int, block: int) -> int:
    return -(-size // block)


spatial_correlation = Kernel("spatial_correlation", "triton", _can_run, _forward, _backward)
