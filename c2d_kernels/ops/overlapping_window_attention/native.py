"""Attention in overlapping windows on the CPU (csrc/overlapping_window_attention)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    NumbersAndMask: TypeAlias = tuple[int, int, int, int, int, int, int, float, list[bool]]
    """Window, num_heads, overlap, shift, scale, and which gradients are wanted."""


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, regions: Tensor | None, *options: float
) -> Tensor:
    op = torch.ops.c2d_native.overlapping_window_attention.default
    return op(*_ready(q, k, v, bias, regions), *options).to(q.dtype)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    regions: Tensor | None,
    *options: Unpack[NumbersAndMask],
) -> tuple[Tensor | None, ...]:
    ready = _ready(q, k, v, bias, regions)
    op = torch.ops.c2d_native.overlapping_window_attention_backward.default
    found = op(grad.to(ready[0].dtype), *ready, *options[:-1])
    gradients = [
        gradient.to(x.dtype) if wanted else None
        for gradient, x, wanted in zip(found, (q, k, v, bias), options[-1], strict=False)
    ]
    return (*gradients, None)


def _ready(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, regions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """All in the type that the kernel computes in: float32, or float64 for float64 features."""
    compute = torch.promote_types(q.dtype, torch.float32)
    labels = None if regions is None else regions.to(torch.int32).contiguous()
    return q.to(compute), k.to(compute), v.to(compute), bias.to(compute).contiguous(), labels


overlapping_window_attention = Kernel(
    "overlapping_window_attention",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    native_ops=("overlapping_window_attention", "overlapping_window_attention_backward"),
)
