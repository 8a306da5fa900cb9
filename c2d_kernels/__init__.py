"""Fused operators for efficient super-resolution networks.

The operators run on any machine: by a native or GPU kernel where one can, else by the short PyTorch
reference that defines them. docs/operators.md lists them, c2d_kernels/ops has a folder for each.
Feature maps are channels-last (B, H, W, C). `backend(name)` or the variable C2D_BACKEND asks for an
implementation, and one that cannot run raises BackendError; `info()` says what is here and why.
`accelerate(net)` runs the layers of other people's networks on these operators, and
`install_as_mamba_ssm()` lets code that was written for mamba_ssm run on this package.

Example:
    >>> import torch, c2d_kernels
    >>> q, v = torch.randn(2, 1, 180, 320, 30).unbind()
    >>> c2d_kernels.channel_correlation(q, v, window_size=64).shape
    torch.Size([1, 180, 320, 30])
"""

from .accelerate import AccelerationError, accelerate
from .dispatch import BackendError, backend
from .drop_in.install import install_as_mamba_ssm
from .ops.attention_branch.op import attention_branch
from .ops.channel_correlation.op import channel_correlation
from .ops.conv_ffn.op import conv_ffn
from .ops.coordinate_query.op import (
    coordinate_query,
    coordinate_query_moments,
    coordinate_query_weight_shapes,
)
from .ops.coordinate_query.positions import Region
from .ops.cosine_window_layer.op import cosine_window_layer
from .ops.dual_features.op import dual_features
from .ops.gated_ffn.op import gated_ffn
from .ops.mlp_branch.op import mlp_branch
from .ops.overlapping_window_attention.op import overlapping_window_attention
from .ops.res_post_norm.op import res_post_norm
from .ops.selective_scan.op import selective_scan
from .ops.spatial_correlation.op import spatial_correlation
from .ops.window_attention.cosine import cosine_window_attention
from .ops.window_attention.op import permuted_window_attention, window_attention
from .ops.window_layer.op import window_layer
from .report import info

__all__ = [
    "AccelerationError",
    "BackendError",
    "Region",
    "accelerate",
    "attention_branch",
    "backend",
    "channel_correlation",
    "conv_ffn",
    "coordinate_query",
    "coordinate_query_moments",
    "coordinate_query_weight_shapes",
    "cosine_window_attention",
    "cosine_window_layer",
    "dual_features",
    "gated_ffn",
    "info",
    "install_as_mamba_ssm",
    "mlp_branch",
    "overlapping_window_attention",
    "permuted_window_attention",
    "res_post_norm",
    "selective_scan",
    "spatial_correlation",
    "window_attention",
    "window_layer",
]
