"""The window layer by the native CPU kernel (csrc/window_layer)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..dispatch import Kernel


def _can_run(x: Tensor, *_: object) -> str | None:
    if native.missing is not None:
        return native.missing
    if x.device.type != "cpu":
        return f"it runs on CPU tensors, and these are on {x.device}"
    return None


def _forward(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, *rest = (w.to(compute) for w in weights)
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = rest
    channels = x.shape[-1]
    attention = _after_norm(qkv, qkv_bias, norm1, norm1_bias)
    attention[:channels] *= (channels // num_heads) ** -0.5
    out = torch.ops.c2d_native.window_layer.default(
        x.to(compute),
        attention,
        _with_bias(proj, proj_bias),
        _after_norm(fc1, fc1_bias, norm2, norm2_bias),
        _with_bias(fc2, fc2_bias),
        bias_table.to(compute).contiguous(),
        window_size,
        num_heads,
        shift,
        eps,
    )
    return out.to(x.dtype)


def _with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """(out, in + 1): the bias as the weight of one more input, which is always 1."""
    return torch.cat([weight, bias[:, None]], dim=1)


def _after_norm(weight: Tensor, bias: Tensor, norm: Tensor, norm_bias: Tensor) -> Tensor:
    """The same for a Linear behind a LayerNorm, whose affine part it takes over."""
    return _with_bias(weight * norm, torch.addmv(bias, weight, norm_bias))


window_layer = Kernel("window_layer", "cpu", _can_run, _forward)
