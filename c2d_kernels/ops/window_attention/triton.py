"""Window attention and permuted window attention by Triton kernels (triton_kernels.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels import triton_support
from c2d_kernels.dispatch import Kernel

MAX_WINDOW = 32  # tokens a side; the bias gradient holds heads * N * N numbers
MAX_HEAD_DIM = 64
RUNS = 128  # of windows, in the bias gradient: programs a head, and partial sums a head
TILE_PROGRAMS = 2048  # of the bias gradient of large windows: fewer runs where there are more tiles


def _refusal(features: Tensor, channels: int, window_size: int, num_heads: int) -> str | None:
    head_dim = channels // num_heads
    if window_size > MAX_WINDOW:
        return f"it takes windows up to {MAX_WINDOW}, and this one is {window_size}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes heads of up to {MAX_HEAD_DIM} channels, and these have {head_dim}"
    return triton_support.refusal(features)


def _can_run(
    qkv: Tensor, bias_table: Tensor, window_size: int, num_heads: int, shift: int, scale: float
) -> str | None:
    return _refusal(qkv, qkv.shape[-1] // 3, window_size, num_heads)


def _can_run_permuted(
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
) -> str | None:
    return _refusal(q, q.shape[-1], window_size, num_heads)


def _forward(
    qkv: Tensor, bias_table: Tensor, window_size: int, num_heads: int, shift: int, scale: float
) -> Tensor:
    q, k, v = triton_support.channels_last(qkv).chunk(3, -1)
    return _attend(q, k, v, bias_table, window_size, num_heads, shift, scale, cell=1)


def _forward_permuted(
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
) -> Tensor:
    k, v = triton_support.channels_last(kv).chunk(2, -1)
    q = triton_support.channels_last(q)
    return _attend(q, k, v, bias_table, window_size, num_heads, shift, scale, cell=2)


def _backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    inputs = triton_support.channels_last(qkv).chunk(3, -1)
    dqkv = qkv.new_empty(qkv.shape)
    dtable = _differentiate(
        grad,
        inputs,
        dqkv.chunk(3, -1),
        bias_table,
        window_size,
        num_heads,
        shift,
        scale,
        1,
        mask[1],
    )
    return dqkv if mask[0] else None, dtable


def _backward_permuted(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    inputs = (triton_support.channels_last(q), *triton_support.channels_last(kv).chunk(2, -1))
    dq, dkv = q.new_empty(q.shape), kv.new_empty(kv.shape)
    found = (dq, *dkv.chunk(2, -1))
    dtable = _differentiate(
        grad, inputs, found, bias_table, window_size, num_heads, shift, scale, 2, mask[2]
    )
    return dq if mask[0] else None, dkv if mask[1] else None, dtable


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
    cell: int,
) -> Tensor:
    from . import triton_kernels as kernels

    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    constants = _constants(q, window_size, num_heads, shift, scale, cell)
    blocks = _blocks(q, window_size, num_heads, cell)
    grid = (_windows(q, window_size), _count(window_size**2, blocks["BLOCK_Q"]))
    with triton_support.on_device(q):
        kernels.forward[grid](
            *(q, k, v, _table(bias_table, q.dtype), out),
            *map(triton_support.strides, (q, k, out)),
            *(tuple(q.shape[1:3]), num_heads),
            **constants,
            **blocks,
        )
    return out


def _differentiate(
    grad: Tensor,
    inputs: tuple[Tensor, ...],
    found: tuple[Tensor, ...],
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
    cell: int,
    biased: bool,
) -> Tensor | None:
    """Fill found, the gradients of inputs (q, k, v); return the table's, if biased."""
    from . import triton_kernels as kernels

    q, k, _ = inputs
    dq, dk, _ = found
    if q.numel() == 0:
        return torch.zeros_like(bias_table) if biased else None
    queries, keys, windows = window_size**2, (window_size // cell) ** 2, _windows(q, window_size)
    sums = torch.promote_types(q.dtype, torch.float32)
    constants = _constants(q, window_size, num_heads, shift, scale, cell)
    whole_blocks = _whole_window(q, window_size, num_heads, cell)
    whole = whole_blocks is not None
    blocks = whole_blocks or _blocks(q, window_size, num_heads, cell, backward=True)
    blocks_q, blocks_k = _count(queries, blocks["BLOCK_Q"]), _count(keys, blocks["BLOCK_K"])
    grad = triton_support.channels_last(grad)
    # Two numbers per row of the scores, where a window is more than a tile.
    rows = (0,) if whole else (windows, num_heads, queries)
    lse, delta = q.new_empty(rows, dtype=sums), q.new_empty(rows, dtype=sums)
    read = (*inputs, _table(bias_table, q.dtype), grad, lse, delta)
    strides, map_size = [triton_support.strides(x) for x in (q, k, grad)], tuple(q.shape[1:3])
    with triton_support.on_device(q):
        if not whole:
            kernels.backward_queries[windows, blocks_q](
                *read,
                dq,
                *strides,
                triton_support.strides(dq),
                map_size,
                num_heads,
                **constants,
                **blocks,
            )
            kernels.backward_keys[windows, blocks_k](
                *read,
                *found[1:],
                *strides,
                triton_support.strides(dk),
                map_size,
                num_heads,
                **constants,
                **blocks,
            )
            if not biased:
                return None
        tiles = blocks_q * blocks_k
        runs = min(RUNS, max(1, TILE_PROGRAMS // (num_heads * tiles))) if biased else windows
        run = _count(windows, runs)
        runs = _count(windows, run)
        partial = q.new_empty((runs, num_heads, queries, keys) if biased else 0, dtype=sums)
        kernels.backward_tile[runs * num_heads, tiles](
            *(*read, *found, partial),
            *(
                *strides,
                triton_support.strides(dq),
                triton_support.strides(dk),
                map_size,
                num_heads,
                windows,
                run,
            ),
            **constants,
            **blocks,
            WHOLE=whole,
            BIAS=biased,
        )
    if not biased:
        return None
    return _sum_by_offset(partial.sum(0), window_size, cell).to(bias_table.dtype)


def _sum_by_offset(scores: Tensor, window_size: int, cell: int) -> Tensor:
    """(heads, N, keys) summed over the pairs that share an offset: ((2s-1)^2, heads).

    Laid out with 2s numbers per row and read with 2s-1, a matrix has its diagonals in its columns:
    a sum in fixed order, where adding by index would be atomic.
    """
    heads, side = scores.shape[0], window_size // cell
    scores = scores.reshape(heads, side, cell, side, cell, side, side).sum((2, 4))
    scores = scores.permute(0, 2, 4, 1, 3)  # (heads, x, X, y, Y)
    for _ in range(2):
        sheared = F.pad(scores.flip(-1), (0, side)).flatten(-2)[..., : side * (2 * side - 1)]
        summed = sheared.unflatten(-1, (side, 2 * side - 1)).sum(-2)
        scores = summed.movedim(-1, 1)  # (heads, dy, x, X), then (heads, dx, dy)
    return scores.permute(2, 1, 0).flatten(0, 1)


def _constants(
    q: Tensor, window_size: int, num_heads: int, shift: int, scale: float, cell: int
) -> dict[str, object]:
    """Compile-time arguments of a kernel, besides its blocks."""
    return {
        "HEAD_DIM": q.shape[-1] // num_heads,
        "SCALE": scale,  # as an argument it would reach float64 kernels in float32
        "WINDOW": window_size,
        "SHIFT": shift,
        "CELL": cell,
        **triton_support.types(q.dtype),
    }


def _blocks(
    q: Tensor, window_size: int, num_heads: int, cell: int, backward: bool = False
) -> dict[str, int]:
    """The largest blocks that stay in registers (tests/kernels/triton_usage.py reads them)."""
    depth = triton_support.block(q.shape[-1] // num_heads)
    half = q.dtype.itemsize == 2
    block_q = 64 if half else 32
    if backward and depth > (32 if half else 16):
        block_q //= 2
    block_k = 32 if half or backward or depth > 16 else 64
    return _launch(q, window_size, num_heads, cell, block_q, block_k, 8 if depth > 32 else 4)


def _whole_window(q: Tensor, window_size: int, num_heads: int, cell: int) -> dict[str, int] | None:
    """Blocks that hold a window, for the backward in one tile; None where registers do not."""
    depth = triton_support.block(q.shape[-1] // num_heads)
    half = q.dtype.itemsize == 2
    if window_size**2 > 64 or depth > (32 if half else 16):
        return None
    return _launch(q, window_size, num_heads, cell, 64, 64, 4 if half else 8)


def _launch(
    q: Tensor, window_size: int, num_heads: int, cell: int, block_q: int, block_k: int, warps: int
) -> dict[str, int]:
    block_q = min(block_q, triton_support.block(window_size**2))
    block_k = min(block_k, triton_support.block((window_size // cell) ** 2))
    return {
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "BLOCK_D": triton_support.block(q.shape[-1] // num_heads),
        "num_warps": 1 if block_q * block_k <= 256 else warps,
        "num_stages": 1,
    }


def _count(size: int, block: int) -> int:
    return -(-size // block)


def _windows(x: Tensor, window_size: int) -> int:
    return x.shape[0] * (x.shape[1] // window_size) * (x.shape[2] // window_size)


def _table(bias_table: Tensor, dtype: torch.dtype) -> Tensor:
    """(heads, (2s-1)^2) in the type of the sums: neighbouring keys read neighbouring numbers."""
    return bias_table.t().to(torch.promote_types(dtype, torch.float32)).contiguous()


window_attention = Kernel("window_attention", "triton", _can_run, _forward, _backward)
permuted_window_attention = Kernel(
    "permuted_window_attention",
    "triton",
    _can_run_permuted,
    _forward_permuted,
    _backward_permuted,
)
