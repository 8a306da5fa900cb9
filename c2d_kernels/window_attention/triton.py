"""Window attention and permuted window attention by Triton kernels (triton_kernels.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import triton_support
from ..dispatch import Kernel

MAX_WINDOW = 32  # tokens a side; the bias gradient holds heads * N * N numbers
MAX_HEAD_DIM = 64
BLOCK = 64  # queries or keys in registers at a time


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
    q, k, v = _channels_last(qkv).chunk(3, -1)
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
    k, v = _channels_last(kv).chunk(2, -1)
    q = _channels_last(q)
    return _attend(q, k, v, bias_table, window_size, num_heads, shift, scale, cell=2)


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
    windows = q.shape[0] * (q.shape[1] // window_size) * (q.shape[2] // window_size)
    if out.numel() == 0:
        return out
    settings = _settings(q, window_size, num_heads, shift, scale, cell)
    grid = (windows, -(-(window_size**2) // settings["BLOCK_Q"]))
    with triton_support.on_device(q):
        kernels.forward[grid](
            q,
            k,
            v,
            _table(bias_table, q.dtype),
            out,
            q.stride()[:3],
            k.stride()[:3],
            out.stride()[:3],
            tuple(q.shape[1:3]),
            num_heads,
            **settings,
        )
    return out


def _settings(
    q: Tensor, window_size: int, num_heads: int, shift: int, scale: float, cell: int
) -> dict[str, object]:
    """What a kernel is compiled for."""
    import triton
    import triton.language as tl

    def block(tokens: int) -> int:
        return min(BLOCK, max(16, triton.next_power_of_2(tokens)))  # tl.dot takes 16 or more

    types = {torch.float64: tl.float64, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    dot = types.get(q.dtype, tl.float32)
    if triton_support.interpreting() and dot == tl.bfloat16:
        dot = tl.float32  # the interpreter's bfloat16 products are wrong
    head_dim = q.shape[-1] // num_heads
    block_q, block_k = block(window_size**2), block((window_size // cell) ** 2)
    return {
        "HEAD_DIM": head_dim,
        # A constant: a float argument would reach float64 kernels as float32.
        "SCALE": scale,
        "WINDOW": window_size,
        "SHIFT": shift,
        "CELL": cell,
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "DOT": dot,
        "SUM": tl.float64 if q.dtype == torch.float64 else tl.float32,
        "num_warps": 4 if block_q * block_k >= 2048 else 1,
        "num_stages": 1,
    }


def _table(bias_table: Tensor, dtype: torch.dtype) -> Tensor:
    """(heads, (2s-1)^2) in the type of the sums: neighbouring keys then read neighbouring numbers."""
    return bias_table.t().to(torch.promote_types(dtype, torch.float32)).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


window_attention = Kernel("window_attention", "triton", _can_run, _forward)
permuted_window_attention = Kernel(
    "permuted_window_attention", "triton", _can_run_permuted, _forward_permuted
)
