"""Spatial correlation by the native CPU kernels (csrc/spatial_correlation)."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native
from ...dispatch import Kernel


def _forward(q: Tensor, v: Tensor, *arguments: Tensor | int) -> Tensor:
    *parameters, height, width, base_height, base_width, heads = arguments
    op = torch.ops.c2d_native.spatial_correlation.default
    compute = torch.promote_types(q.dtype, torch.float32)
    tensors = (_ready(x.to(compute)) for x in (q, v, *parameters))
    return op(*tensors, height, width, base_height, base_width, heads).to(q.dtype)


def _backward(
    grad: Tensor, q: Tensor, v: Tensor, *arguments: Tensor | int | list[bool]
) -> tuple[Tensor | None, ...]:
    *parameters, height, width, base_height, base_width, heads, mask = arguments
    op = torch.ops.c2d_native.spatial_correlation_backward.default
    inputs = (q, v, *parameters)
    compute = torch.promote_types(q.dtype, torch.float32)
    tensors = (_ready(x.to(compute)) for x in (grad, *inputs))
    found = op(*tensors, height, width, base_height, base_width, heads)
    return tuple(
        gradient.to(x.dtype) if needed else None
        for gradient, x, needed in zip(found, inputs, mask, strict=True)
    )


def _ready(x: Tensor) -> Tensor:
    """float32 or float64 with channels side by side, which is what the kernel reads."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if x.stride(-1) == 1 else x.contiguous()


spatial_correlation = Kernel("spatial_correlation", "cpu", native.refusal, _forward, _backward)
