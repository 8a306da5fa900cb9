"""The operator `c2d::spatial_correlation`."""

from __future__ import annotations

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from . import native, reference, triton


def spatial_correlation(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    *,
    window_size: int | tuple[int, int],
    base_window: int,
    num_heads: int,
) -> Tensor:
    """Correlate each token of a window with the window's cells: attention without softmax.

    `out = (q p^T / s + P) p`: p is v reduced to b*b cells by a Linear over the tokens of a cell,
    b = min(window, base_window) per axis; s is the head's width; P is the relative bias, averaged
    over each cell.

    Args:
        q: (B, H, W, C), H and W multiples of the window. float32, bfloat16, float16 or float64.
        v: as q.
        weight: (1, R_y R_x), R = window / b, over a cell's tokens in row-major order. May stay
            float32 beside half-precision features, as weight_bias and bias_table may.
        weight_bias: (1,).
        bias_table: ((2h-1)(2w-1), heads) for a window of h x w pixels, read at (y-Y+h-1, x-X+w-1).
        window_size: one int or (height, width), in pixels; multiples of b.
        base_window: the largest number of cells an axis.
        num_heads: divides C.

    Returns:
        (B, H, W, C), in the dtype of q and v.

    Raises:
        ValueError: a shape or number that does not fit. TypeError: a dtype that does not.

    HiT-SR (2407.05878), spatial self-correlation.
    """
    checks.parameters(q, q=q, v=v)
    checks.parameters(q, weight=weight, weight_bias=weight_bias, bias_table=bias_table)
    q, v = dispatch.autocast(q, v)
    checks.features(q=q, v=v)
    checks.feature_map("q", q)
    checks.shape("v", v, tuple(q.shape), "(B, H, W, C)")
    height, width = checks.window_pair("window_size", window_size)
    checks.positive("base_window", base_window)
    checks.positive("num_heads", num_heads)
    checks.divides("num_heads", num_heads, "the channels of q", q.shape[-1])
    checks.window_multiple("q", q, (height, width))
    base_height, base_width = min(height, base_window), min(width, base_window)
    checks.divides("base_window", base_height, "the height of the window", height)
    checks.divides("base_window", base_width, "the width of the window", width)
    tokens = (height // base_height) * (width // base_width)
    checks.shape("weight", weight, (1, tokens), "(1, R_y R_x)")
    checks.shape("weight_bias", weight_bias, (1,), "(1,)")
    offsets = (2 * height - 1) * (2 * width - 1)
    checks.shape("bias_table", bias_table, (offsets, num_heads), "((2h-1)(2w-1), heads)")
    return _spatial(
        q, v, weight, weight_bias, bias_table, height, width, base_height, base_width, num_heads
    )


def flops(
    batch: int, height: int, width: int, channels: int, base_height: int, base_width: int
) -> int:
    """Operations of the definition of spatial_correlation: p, q p^T, and the map times p."""
    return 2 * batch * height * width * channels * (1 + 2 * base_height * base_width)


def _map(device: torch.device) -> Tensor:
    return torch.zeros(1, 4, 4, 4, device=device)


_spatial = define(
    Operator(
        name="spatial_correlation",
        arguments="Tensor q, Tensor v, Tensor weight, Tensor weight_bias, Tensor bias_table, "
        "SymInt window_height, SymInt window_width, SymInt base_height, SymInt base_width, "
        "SymInt num_heads",
        outputs=1,
        reference=reference.spatial_correlation,
        fake=lambda q, *_: q.new_empty(q.shape),
        flops=lambda q, v, w, b, table, height, width, base_height, base_width, heads: flops(
            q[0], q[1], q[2], q[3], base_height, base_width
        ),
        example=lambda device: (
            _map(device),
            _map(device),
            torch.zeros(1, 4, device=device),
            torch.zeros(1, device=device),
            torch.zeros(49, 2, device=device),
            4,
            4,
            2,
            2,
            2,
        ),
    )
)
dispatch.register(triton.spatial_correlation)
dispatch.register(native.spatial_correlation)
