"""Selective scan by the native CPU kernel (csrc/selective_scan)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ...dispatch import Kernel


def _forward(u: Tensor, *rest: Tensor | bool | None) -> tuple[Tensor, Tensor, Tensor]:
    op = torch.ops.c2d_native.selective_scan.default
    y, last_state, states = op(*_ready(u.dtype, u, *rest))
    return y.to(u.dtype), last_state, states


def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    states: Tensor,
    u: Tensor,
    *rest: Tensor | bool | list[bool] | None,
) -> Sequence[Tensor | None]:
    *rest, mask = rest
    inputs = (u, *rest[:-1])
    op = torch.ops.c2d_native.selective_scan_backward.default
    found = op(*_ready(u.dtype, grad_y, grad_last_state, states, u, *rest))
    return [
        gradient.to(x.dtype) if needed else None
        for gradient, x, needed in zip(found, inputs, mask, strict=True)
    ]


def _ready(dtype: torch.dtype, *arguments: Tensor | bool | None) -> list[Tensor | bool | None]:
    """Every tensor in the type that the kernel computes in: float32, or float64 for float64."""
    compute = torch.promote_types(dtype, torch.float32)
    return [x.to(compute) if isinstance(x, Tensor) else x for x in arguments]


kernel = Kernel("selective_scan", "cpu", native.refusal, _forward, _backward, keeps=True)
