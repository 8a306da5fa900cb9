"""Attention in windows by the native CPU kernels (csrc/window_attention)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    NumbersAndMask: TypeAlias = tuple[int, int, int, float, list[bool]]
    """window_size, num_heads, shift, scale, and which gradients are wanted."""


def _forward(qkv: Tensor, bias_table: Tensor, *options: float) -> Tensor:
    return _permuted_forward(qkv, None, bias_table, *options)


def _backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, *options: Unpack[NumbersAndMask]
) -> tuple[Tensor | None, ...]:
    d_qkv, _, d_table = _gradients(grad, qkv, None, bias_table, *options[:-1])
    return _wanted((d_qkv, d_table), (qkv, bias_table), options[-1])


def _permuted_forward(q: Tensor, kv: Tensor | None, bias_table: Tensor, *options: float) -> Tensor:
    op = torch.ops.c2d_native.window_attention.default
    return op(*_ready(q, kv, bias_table), *options).to(q.dtype)


def _permuted_backward(
    grad: Tensor, q: Tensor, kv: Tensor, bias_table: Tensor, *options: Unpack[NumbersAndMask]
) -> tuple[Tensor | None, ...]:
    found = _gradients(grad, q, kv, bias_table, *options[:-1])
    return _wanted(found, (q, kv, bias_table), options[-1])


def _gradients(
    grad: Tensor, q: Tensor, kv: Tensor | None, bias_table: Tensor, *options: float
) -> tuple[Tensor, Tensor, Tensor]:
    q, kv, bias_table = _ready(q, kv, bias_table)
    op = torch.ops.c2d_native.window_attention_backward.default
    return op(grad.to(q.dtype), q, kv, bias_table, *options)


def _cosine_forward(qkv: Tensor, bias_table: Tensor, cosine_scale: Tensor, *options: int) -> Tensor:
    op = torch.ops.c2d_native.cosine_window_attention.default
    return op(*_computed(qkv, bias_table, cosine_scale), *options).to(qkv.dtype)


def _cosine_backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, cosine_scale: Tensor, *options: Any
) -> tuple[Tensor | None, ...]:
    inputs = (qkv, bias_table, cosine_scale)
    op = torch.ops.c2d_native.cosine_window_attention_backward.default
    ready = _computed(qkv, *inputs[1:])
    return _wanted(op(grad.to(ready[0].dtype), *ready, *options[:-1]), inputs, options[-1])


def _computed(qkv: Tensor, bias_table: Tensor, cosine_scale: Tensor) -> tuple[Tensor, ...]:
    qkv, _, bias_table = _ready(qkv, None, bias_table)
    return qkv, bias_table, cosine_scale.to(qkv.dtype).contiguous()


def _ready(
    q: Tensor, kv: Tensor | None, bias_table: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """All in the type that the kernel computes in: float32, or float64 for float64 features."""
    compute = torch.promote_types(q.dtype, torch.float32)
    return q.to(compute), None if kv is None else kv.to(compute), bias_table.to(compute)


def _wanted(
    found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], mask: list[bool]
) -> tuple[Tensor | None, ...]:
    return tuple(
        grad.to(x.dtype) if needed else None
        for grad, x, needed in zip(found, inputs, mask, strict=True)
    )


window_attention = Kernel(
    "window_attention",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    native_ops=("window_attention", "window_attention_backward"),
)
permuted_window_attention = Kernel(
    "permuted_window_attention",
    "cpu",
    native.refusal,
    _permuted_forward,
    _permuted_backward,
    native_ops=("window_attention", "window_attention_backward"),
)
cosine_window_attention = Kernel(
    "cosine_window_attention",
    "cpu",
    native.refusal,
    _cosine_forward,
    _cosine_backward,
    native_ops=("cosine_window_attention", "cosine_window_attention_backward"),
)
