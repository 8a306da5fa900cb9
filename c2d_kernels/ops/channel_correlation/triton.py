"""Channel correlation by Triton kernels (triton_kernels.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from c2d_kernels import triton_support
from c2d_kernels.dispatch import Kernel

MAX_CHANNELS = 64
PART = 256  # tokens of a window that one program has at most
BLOCK = 32  # tokens in registers at a time


def _can_run(q: Tensor, v: Tensor, window_height: int, window_width: int) -> str | None:
    if q.shape[-1] > MAX_CHANNELS:
        return f"it takes up to {MAX_CHANNELS} channels, and these are {q.shape[-1]}"
    return triton_support.refusal(q)


def _forward(q: Tensor, v: Tensor, window_height: int, window_width: int) -> Tensor:
    from . import triton_kernels as kernels

    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    q, v = map(triton_support.channels_last, (q, v))
    grid, span, constants = _launch(q, window_height, window_width)
    with triton_support.on_device(q):
        kernels.forward[grid](
            *(q, v, _mean(q, v, grid, span, constants), out),
            *map(triton_support.strides, (q, v, out)),
            *(tuple(q.shape[1:3]), span),
            **constants,
            GIVEN=grid[1] > 1,
        )
    return out


def _backward(
    grad: Tensor, q: Tensor, v: Tensor, window_height: int, window_width: int, mask: list[bool]
) -> tuple[Tensor | None, ...]:
    from . import triton_kernels as kernels

    dq, dv = q.new_empty(q.shape), v.new_empty(v.shape)
    if q.numel() > 0:
        grad, q, v = map(triton_support.channels_last, (grad, q, v))
        grid, span, constants = _launch(q, window_height, window_width)
        with triton_support.on_device(q):
            means = [_mean(a, v, grid, span, constants) for a in (q, grad)]
            kernels.backward[grid](
                *(q, v, grad, *means, dq, dv),
                *map(triton_support.strides, (q, v, grad, dq)),
                *(tuple(q.shape[1:3]), span),
                **constants,
                GIVEN=grid[1] > 1,
            )
    return tuple(x if needed else None for x, needed in zip((dq, dv), mask, strict=True))


def _mean(
    a: Tensor, v: Tensor, grid: tuple[int, int], span: int, constants: dict[str, object]
) -> Tensor:
    """a^T v / n, (windows, C, C), where windows are split; else nothing: the kernel makes it."""
    from . import triton_kernels as kernels

    windows, parts = grid
    channels = a.shape[-1]
    shape = (parts, windows, channels, channels) if parts > 1 else 0
    partial = a.new_empty(shape, dtype=torch.promote_types(a.dtype, torch.float32))
    if parts == 1:
        return partial
    strides = map(triton_support.strides, (a, v))
    kernels.gram[grid](a, v, partial, *strides, tuple(a.shape[1:3]), windows, span, **constants)
    return partial.sum(0)


def _launch(
    q: Tensor, window_height: int, window_width: int
) -> tuple[tuple[int, int], int, dict[str, object]]:
    """The grid (windows, parts of a window), tokens of a part, what a kernel is compiled for."""
    batch, height, width, channels = q.shape
    # A window beyond the map is the map: no part then has tokens of which none exists.
    window_height, window_width = min(window_height, height), min(window_width, width)
    tokens = window_height * window_width
    windows = batch * -(-height // window_height) * -(-width // window_width)
    block, depth = min(BLOCK, triton_support.block(tokens)), triton_support.block(channels)
    return (
        (windows, -(-tokens // PART)),
        min(PART, tokens),
        {
            "HEIGHT": window_height,
            "WIDTH": window_width,
            "CHANNELS": channels,
            "DEPTH": depth,
            "BLOCK": block,
            **triton_support.types(q.dtype),
            "num_warps": 8 if depth > 32 else 4 if block * depth > 256 else 1,
            "num_stages": 1,
        },
    )


channel_correlation = Kernel("channel_correlation", "triton", _can_run, _forward, _backward)
