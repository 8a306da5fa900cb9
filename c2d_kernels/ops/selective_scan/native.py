"""Selective scan by the native CPU kernel (csrc/selective_scan)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .reference import Arguments


def _forward(
    *arguments: Unpack[tuple[Unpack[Arguments], bool]],
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = arguments[0].dtype
    op = torch.ops.c2d_native.selective_scan.default
    y, last_state, states = op(*_ready(dtype, *arguments))
    return y.to(dtype), last_state, states


def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    states: Tensor,
    *rest: Unpack[tuple[Unpack[Arguments], list[bool]]],
) -> Sequence[Tensor | None]:
    arguments, mask = rest[:-1], rest[-1]
    op = torch.ops.c2d_native.selective_scan_backward.default
    found = op(*_ready(arguments[0].dtype, grad_y, grad_last_state, states, *arguments))
    return [
        gradient.to(x.dtype) if needed and x is not None else None
        for gradient, x, needed in zip(found, arguments[:-1], mask, strict=True)
    ]


def _ready(dtype: torch.dtype, *arguments: Tensor | bool | None) -> list[Tensor | bool | None]:
    """Every tensor in the type that the kernel computes in: float32, or float64 for float64."""
    compute = torch.promote_types(dtype, torch.float32)
    return [x.to(compute) if isinstance(x, Tensor) else x for x in arguments]


kernel = Kernel(
    "selective_scan",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    keeps=True,
    native_ops=("selective_scan", "selective_scan_backward"),
)
