"""mamba_ssm's norms, which add a residual first: RMSNorm, rms_norm_fn and layer_norm_fn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm, or RMS norm, of `x + residual` over the last dimension, computed in float32.

    Args:
        x: (..., C). weight, bias: (C,), bias or None.
        residual: as x, or None.
        prenorm: whether to return the sum too, for the next layer's residual.
        residual_in_fp32: whether that is float32 (float64 for float64) where no residual is given;
            else it has the residual's dtype.

    Returns:
        The norm in the dtype of x; with prenorm, that and the sum.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    scale = weight.to(wide)
    offset = None if bias is None else bias.to(wide)
    if is_rms_norm:
        y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * scale
        y = y if offset is None else y + offset
    else:
        y = F.layer_norm(total, scale.shape, scale, offset, eps)
    if not prenorm:
        return y.to(x.dtype)
    kept = x.dtype if residual is None else residual.dtype
    if residual is None and residual_in_fp32:
        kept = wide
    return y.to(x.dtype), total.to(kept)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """`x / rms(x) * weight + bias` of x + residual: layer_norm_fn without the mean."""
    return layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


class RMSNorm(nn.Module):
    """rms_norm_fn with a weight of its own."""

    bias: None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return rms_norm_fn(x, self.weight, None, residual, prenorm, residual_in_fp32, self.eps)
