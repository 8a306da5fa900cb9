"""Channel correlation by the native CPU kernels (csrc/channel_correlation)."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native
from ...dispatch import Kernel


def _forward(q: Tensor, v: Tensor, window_height: int, window_width: int) -> Tensor:
    op = torch.ops.c2d_native.channel_correlation.default
    return op(_ready(q), _ready(v), window_height, window_width).to(q.dtype)


def _backward(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    window_height: int,
    window_width: int,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    op = torch.ops.c2d_native.channel_correlation_backward.default
    found = op(_ready(grad), _ready(q), _ready(v), window_height, window_width)
    return tuple(x.to(q.dtype) if needed else None for x, needed in zip(found, mask, strict=True))


def _ready(x: Tensor) -> Tensor:
    """float32 or float64 with channels side by side, which is what the kernel reads."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if x.stride(-1) == 1 else x.contiguous()


channel_correlation = Kernel("channel_correlation", "cpu", native.refusal, _forward, _backward)
