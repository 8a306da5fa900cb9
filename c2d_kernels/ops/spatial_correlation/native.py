"""Spatial correlation by the native CPU kernels (csrc/spatial_correlation)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _forward(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    *numbers: int,
) -> Tensor:
    op = torch.ops.c2d_native.spatial_correlation.default
    inputs = (q, v, weight, weight_bias, bias_table)
    return op(*(native.ready(x, q.dtype) for x in inputs), *numbers).to(q.dtype)


def _backward(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    *rest: Unpack[tuple[int, int, int, int, int, list[bool]]],
) -> tuple[Tensor | None, ...]:
    numbers, mask = rest[:-1], rest[-1]
    op = torch.ops.c2d_native.spatial_correlation_backward.default
    inputs = (q, v, weight, weight_bias, bias_table)
    found = op(*(native.ready(x, q.dtype) for x in (grad, *inputs)), *numbers)
    return tuple(
        gradient.to(x.dtype) if needed else None
        for gradient, x, needed in zip(found, inputs, mask, strict=True)
    )


spatial_correlation = Kernel(
    "spatial_correlation",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    native_ops=("spatial_correlation", "spatial_correlation_backward"),
)
