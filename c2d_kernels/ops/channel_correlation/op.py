"""The operator `c2d::channel_correlation`."""

from __future__ import annotations

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from . import native, reference, triton


def channel_correlation(q: Tensor, v: Tensor, *, window_size: int | tuple[int, int]) -> Tensor:
    """Mix the channels of v by their correlation with those of q over each window.

    `out = v (q^T v / n)^T` in each window of n tokens: linear in n, so windows may be large.

    Args:
        q: (B, H, W, C), float32, bfloat16, float16 or float64; any H, W and strides.
        v: as q.
        window_size: one int or (height, width), in pixels. Windows start at (0, 0); one at the
            border that the map cuts averages over the tokens it has.

    Returns:
        (B, H, W, C), in the dtype of q and v.

    Raises:
        ValueError: a shape or number that does not fit. TypeError: a dtype that does not.

    HiT-SR (2407.05878), channel self-correlation.
    """
    checks.parameters(q, q=q, v=v)
    q, v = dispatch.autocast(q, v)
    checks.features(q=q, v=v)
    checks.feature_map("q", q)
    checks.shape("v", v, tuple(q.shape), "(B, H, W, C)")
    height, width = checks.window_pair("window_size", window_size)
    return _channel(q, v, height, width)


def flops(batch: int, height: int, width: int, channels: int) -> int:
    """Operations of the definition of channel_correlation: q^T v and v M^T, any window."""
    return 4 * batch * height * width * channels**2


def _map(device: torch.device) -> Tensor:
    return torch.zeros(1, 4, 4, 4, device=device)


_channel = define(
    Operator(
        name="channel_correlation",
        arguments="Tensor q, Tensor v, SymInt window_height, SymInt window_width",
        outputs=1,
        reference=reference.channel_correlation,
        fake=lambda q, *_: q.new_empty(q.shape),
        flops=lambda q, *_: flops(*q),
        example=lambda device: (_map(device), _map(device), 4, 4),
    )
)
dispatch.register(native.channel_correlation)
dispatch.register(triton.channel_correlation)
