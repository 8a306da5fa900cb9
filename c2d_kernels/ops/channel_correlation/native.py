"""Channel correlation by the native CPU kernels (csrc/channel_correlation)."""

from __future__ import annotations

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel


def _forward(q: Tensor, v: Tensor, window_height: int, window_width: int) -> Tensor:
    op = torch.ops.c2d_native.channel_correlation.default
    out = op(native.ready(q, q.dtype), native.ready(v, q.dtype), window_height, window_width)
    return out.to(q.dtype)


def _backward(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    window_height: int,
    window_width: int,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    op = torch.ops.c2d_native.channel_correlation_backward.default
    maps = (native.ready(x, q.dtype) for x in (grad, q, v))
    found = op(*maps, window_height, window_width)
    return tuple(x.to(q.dtype) if needed else None for x, needed in zip(found, mask, strict=True))


channel_correlation = Kernel(
    "channel_correlation",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    native_ops=("channel_correlation", "channel_correlation_backward"),
)
