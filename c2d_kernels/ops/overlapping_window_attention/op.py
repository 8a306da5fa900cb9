"""The operator `c2d::overlapping_window_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from . import native, reference


def overlapping_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    regions: Tensor | None = None,
    *,
    window_size: int | tuple[int, int],
    num_heads: int,
    overlap: int | tuple[int, int] = 0,
    shift: int | tuple[int, int] = 0,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention of windows to larger windows around them, with a dense bias.

    HAT's overlapping cross attention and, without overlap, DAT's attention in rectangles.

    Args:
        q: (B, H, W, C), H and W multiples of the window. float32, bfloat16, float16 or float64; any
            strides.
        k, v: as q. Beyond the map both are zero, and such keys take part in the softmax.
        bias: (heads, N, M), added to the scores of N = h w queries and M = (h + 2a)(w + 2b) keys of
            a window, both row by row. May be float32 beside half q; it has a gradient.
        regions: (H, W), integers from 0 to 2^20 - 1, a label for each pixel; None: all the same.
            Pixels of a window whose labels differ are masked by -100. Not with an overlap.
        window_size: h and w, in pixels: one int or (height, width).
        num_heads: divides C; heads are contiguous channels of q, k and v.
        overlap: a and b, by how much the keys' window is larger at each side.
        shift: how far the windows are shifted down and right, each from 0 to its side - 1, and 0
            with an overlap. Tokens that meet only because the map wraps around are masked by -100.
        scale: factor of q k^T; None is head_dim^-0.5.

    Returns:
        (B, H, W, C), in the dtype of q.

    Raises:
        ValueError: a shape or number that does not fit. TypeError: a dtype that does not.

    HAT (2205.04437), section 3.2; DAT (2308.03364), section 3.2.
    """
    checks.parameters(q, q=q, k=k, v=v, bias=bias)
    q, k, v = dispatch.autocast(q, k, v)
    checks.features(q=q, k=k, v=v)
    checks.feature_map("q", q)
    channels = q.shape[-1]
    for name, x in (("k", k), ("v", v)):
        checks.shape(name, x, tuple(q.shape), "(B, H, W, C)")
    height, width = checks.window_pair("window_size", window_size)
    down, right = checks.window_pair("shift", shift, least=0)
    tall, wide = checks.window_pair("overlap", overlap, least=0)
    checks.positive("num_heads", num_heads)
    checks.divides("num_heads", num_heads, "the channels of q", channels)
    if down >= height or right >= width:
        raise ValueError(
            f"shift must be below window_size, ({height}, {width}), got ({down}, {right})."
        )
    if (down or right) and (tall or wide):
        raise ValueError("windows are shifted or overlap, not both: leave out shift or overlap.")
    if regions is not None:
        if tall or wide:
            raise ValueError("windows that overlap have no regions: leave out regions or overlap.")
        checks.labels(q, "regions", regions)
        checks.shape("regions", regions, tuple(q.shape[1:3]), "(H, W)")
    checks.window_multiple("q", q, (height, width))
    keys = (height + 2 * tall) * (width + 2 * wide)
    checks.shape("bias", bias, (num_heads, height * width, keys), "(heads, N, M)")
    scale = (channels // num_heads) ** -0.5 if scale is None else float(scale)
    numbers = (height, width, num_heads, tall, wide, down, right, scale)
    return _attention(q, k, v, bias, regions, *numbers)


def flops(batch: int, height: int, width: int, channels: int, keys: int) -> int:
    """Operations of the definition: q k^T, and its product with v."""
    return 4 * batch * height * width * channels * keys


def _map(device: torch.device, channels: int) -> Tensor:
    return torch.zeros(1, 4, 4, channels, device=device)


_attention = define(
    Operator(
        name="overlapping_window_attention",
        arguments="Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? regions, "
        "SymInt window_height, SymInt window_width, SymInt num_heads, SymInt overlap_height, "
        "SymInt overlap_width, SymInt shift_down, SymInt shift_right, float scale",
        outputs=1,
        reference=reference.overlapping_window_attention,
        fake=lambda q, *_: q.new_empty(q.shape),
        flops=lambda q, k, v, bias, *_: flops(q[0], q[1], q[2], q[3], bias[2]),
        example=lambda device: (
            *(_map(device, 4) for _ in range(3)),
            torch.zeros(2, 8, 24, device=device),
            None,
            *(2, 4, 2, 1, 1, 0, 0, 1.0),
        ),
    )
)
dispatch.register(native.overlapping_window_attention)
