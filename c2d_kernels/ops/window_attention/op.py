"""The operators `c2d::window_attention` and `c2d::permuted_window_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from ..overlapping_window_attention.op import overlapping_window_attention
from . import native, reference, triton


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    *,
    window_size: int | tuple[int, int],
    num_heads: int,
    shift: int | tuple[int, int] = 0,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention inside windows, with Swin's relative bias, roll and shift mask.

    Args:
        qkv: (B, H, W, 3C) = [q | k | v], straight from the Linear; heads are contiguous in each.
            H and W multiples of window_size. float32, bfloat16, float16 or float64; any strides.
        bias_table: ((2h-1)(2w-1), heads), read at (y-Y+h-1, x-X+w-1); or the bias of every query
            and key of a window, (heads, hw, hw). May be float32 beside half qkv.
        window_size: h and w, in pixels: one int or (height, width).
        num_heads: divides C.
        shift: how far the windows are shifted down and right, one int or two, each from 0 to its
            side - 1. With a shift, tokens that meet only because the map wraps around are masked by
            -100.
        scale: factor of q k^T; None is head_dim^-0.5.

    Returns:
        (B, H, W, C), in the dtype of qkv.

    Raises:
        ValueError: a shape or number that does not fit. TypeError: a dtype that does not.

    Squares with a table have kernels of their own; other windows and dense biases take those of
    overlapping_window_attention.

    Swin (2103.14030), equation 4.
    """
    checks.parameters(qkv, qkv=qkv, bias_table=bias_table)
    if isinstance(window_size, (tuple, list)) or isinstance(shift, (tuple, list)):
        window = checks.window_pair("window_size", window_size)
        moved = checks.window_pair("shift", shift, least=0)
        if window[0] != window[1] or moved[0] != moved[1]:
            return _in_rectangles(qkv, bias_table, window, num_heads, moved, scale)
        window_size, shift = window[0], moved[0]
    if bias_table.dim() == 3:
        sides, moved = (window_size, window_size), (shift, shift)
        return _in_rectangles(qkv, bias_table, sides, num_heads, moved, scale)
    (qkv,) = dispatch.autocast(qkv)
    check_qkv(qkv, bias_table, window_size, num_heads, shift)
    scale = (qkv.shape[-1] // (3 * num_heads)) ** -0.5 if scale is None else float(scale)
    return _attention(qkv, bias_table, window_size, num_heads, shift, scale)


def _in_rectangles(
    qkv: Tensor,
    bias: Tensor,
    window: tuple[int, int],
    num_heads: int,
    shift: tuple[int, int],
    scale: float | None,
) -> Tensor:
    """window_attention with a dense bias, or one from the table of any rectangle."""
    checks.feature_map("qkv", qkv)
    checks.positive("num_heads", num_heads)
    checks.divides("3 * num_heads", 3 * num_heads, "the channels of qkv", qkv.shape[-1])
    if bias.dim() != 3:
        entries = (2 * window[0] - 1) * (2 * window[1] - 1)
        checks.shape("bias_table", bias, (entries, num_heads), "((2h-1)(2w-1), heads)")
        bias = reference.relative_bias(bias, window)
    q, k, v = qkv.chunk(3, -1)
    return overlapping_window_attention(
        q,
        k,
        v,
        bias,
        window_size=window,
        num_heads=num_heads,
        shift=shift,
        scale=scale,
    )


def permuted_window_attention(
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    """SRFormer's attention: w*w queries meet (w/2)^2 keys, 2x2 tokens stacked into channels.

    Args:
        q: (B, H, W, C), H and W multiples of window_size. float32, bfloat16, float16 or float64.
        kv: (B, H, W, C/2) = [k | v], C/4 each, in the dtype of q. Channel (a*2+b)*C/4 + c of the
            key at cell (Y, X) of a window is channel c of its token (2Y+a, 2X+b).
        bias_table: ((w-1)^2, heads), read at (y//2-Y+w/2-1, x//2-X+w/2-1). May stay float32.
        window_size: w, in pixels, even.
        num_heads: divides C.
        shift: even, 0 <= shift < w, as in window_attention.
        scale: factor of q k^T; None is head_dim^-0.5.

    Returns:
        (B, H, W, C), in the dtype of q.

    Raises:
        ValueError: a shape or number that does not fit. TypeError: a dtype that does not.

    SRFormer (2303.09735), section 3.2.
    """
    checks.parameters(q, q=q, kv=kv, bias_table=bias_table)
    q, kv = dispatch.autocast(q, kv)
    checks.features(q=q, kv=kv)
    checks.feature_map("q", q)
    _check_attention("q", q, bias_table, window_size, num_heads, shift, permuted=True)
    channels = q.shape[-1]
    checks.shape("kv", kv, (*q.shape[:3], channels // 2), "(B, H, W, C/2)")
    scale = (channels // num_heads) ** -0.5 if scale is None else float(scale)
    return _permuted(q, kv, bias_table, window_size, num_heads, shift, scale)


def flops(batch: int, height: int, width: int, channels: int, window_size: int) -> int:
    """Operations of the definition of window_attention: q k^T, and its product with v."""
    return 4 * batch * height * width * channels * window_size**2


def permuted_flops(batch: int, height: int, width: int, channels: int, window_size: int) -> int:
    """Operations of the definition of permuted_window_attention: a quarter as many keys."""
    return batch * height * width * channels * window_size**2


def check_qkv(
    qkv: Tensor, bias_table: Tensor, window_size: int, num_heads: int, shift: int
) -> None:
    """A map of q, k and v that is whole windows, and the table of their offsets."""
    checks.feature_map("qkv", qkv)
    check_windows("qkv", qkv, window_size, num_heads, shift)
    checks.divides("3 * num_heads", 3 * num_heads, "the channels of qkv", qkv.shape[-1])
    side = 2 * window_size - 1
    checks.shape("bias_table", bias_table, (side * side, num_heads), "((2w-1)^2, heads)")


def check_windows(name: str, x: Tensor, window_size: int, num_heads: int, shift: int) -> None:
    """Numbers of windows that fit a map: sizes positive, the shift within a window."""
    checks.positive("window_size", window_size)
    checks.positive("num_heads", num_heads)
    checks.whole("shift", shift)
    if not 0 <= shift < window_size:
        raise ValueError(
            f"shift must be from 0 to window_size - 1, {window_size - 1}, got {shift}."
        )
    checks.window_multiple(name, x, (window_size, window_size))


def check_layer(
    x: Tensor, bias_table: Tensor, window_size: int, num_heads: int, shift: int, permuted: bool
) -> None:
    """A map and a table that fit a layer with window_attention, or the permuted one, in it."""
    checks.parameters(x, x=x, bias_table=bias_table)
    checks.feature_map("x", x)
    _check_attention("x", x, bias_table, window_size, num_heads, shift, permuted)


def _check_attention(
    name: str,
    x: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    permuted: bool,
) -> None:
    check_windows(name, x, window_size, num_heads, shift)
    channels, side, meaning = x.shape[-1], 2 * window_size - 1, "((2w-1)^2, heads)"
    checks.divides("num_heads", num_heads, f"the channels of {name}", channels)
    if permuted:
        for what, value in (("window_size", window_size), ("shift", shift)):
            if value % 2 != 0:
                raise ValueError(f"{what} must be even, since keys are cells of 2x2, got {value}.")
        checks.divides("4", 4, f"the channels of {name}", channels)
        side, meaning = window_size - 1, "((w-1)^2, heads)"
    checks.shape("bias_table", bias_table, (side * side, num_heads), meaning)


def _map(device: torch.device, channels: int) -> Tensor:
    return torch.zeros(1, 4, 4, channels, device=device)


_attention = define(
    Operator(
        name="window_attention",
        arguments="Tensor qkv, Tensor bias_table, SymInt window_size, SymInt num_heads, "
        "SymInt shift, float scale",
        outputs=1,
        reference=reference.window_attention,
        fake=lambda qkv, *_: qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)),
        flops=lambda qkv, table, window, *_: flops(qkv[0], qkv[1], qkv[2], qkv[3] // 3, window),
        example=lambda device: (_map(device, 12), torch.zeros(49, 2, device=device), 4, 2, 0, 1.0),
    )
)
dispatch.register(native.window_attention)

_permuted = define(
    Operator(
        name="permuted_window_attention",
        arguments="Tensor q, Tensor kv, Tensor bias_table, SymInt window_size, SymInt num_heads, "
        "SymInt shift, float scale",
        outputs=1,
        reference=reference.permuted_window_attention,
        fake=lambda q, *_: q.new_empty(q.shape),
        flops=lambda q, kv, table, window, *_: permuted_flops(q[0], q[1], q[2], q[3], window),
        example=lambda device: (
            _map(device, 8),
            _map(device, 4),
            torch.zeros(9, 2, device=device),
            4,
            2,
            0,
            1.0,
        ),
    )
)
dispatch.register(native.permuted_window_attention)
dispatch.register(triton.window_attention)
dispatch.register(triton.permuted_window_attention)
