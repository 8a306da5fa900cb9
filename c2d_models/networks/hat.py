"""HAT: SwinIR's frame around hybrid and overlapping attention (arXiv 2205.04437).

Attention in windows stands beside a convolution with channel attention, and a layer whose keys come
from larger windows ends each group. Module names are the authors', so that their files load as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from c2d_kernels import overlapping_window_attention

from .frame import Frame
from .fused import FeedForward, WindowAttention, feed_forward, self_attention
from .layers import Conv3x3, PointwiseConv
from .preparable import Preparable
from .registry import register
from .swinir import SWINIR_M, GroupedNetwork, LayerStack, alternating


class MapMean(nn.Module):
    """The mean of each channel of a map, (B, H, W, C) -> (B, 1, 1, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2), keepdim=True)


class ChannelAttention(nn.Module):
    """Each channel scaled by what a small network makes of all channels' means (RCAN)."""

    def __init__(self, dim: int, squeeze_factor: int):
        super().__init__()
        narrow = dim // squeeze_factor
        self.attention = nn.Sequential(
            MapMean(),
            PointwiseConv(dim, narrow),
            nn.ReLU(),
            PointwiseConv(narrow, dim),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions through fewer channels, then channel attention."""

    def __init__(self, dim: int, compress_ratio: int, squeeze_factor: int):
        super().__init__()
        narrow = dim // compress_ratio
        self.cab = nn.Sequential(
            Conv3x3(dim, narrow),
            nn.GELU(),
            Conv3x3(narrow, dim),
            ChannelAttention(dim, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cab(x)


class HybridLayer(nn.Module):
    """x + attention(LN(x)) + conv_scale * convolutions(LN(x)), then x + MLP(LN(x))."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        compress_ratio: int,
        squeeze_factor: int,
        conv_scale: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, shift)
        self.conv_block = ConvBlock(dim, compress_ratio, squeeze_factor)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_ratio)
        self.conv_scale = conv_scale

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv_block(self.norm1(x))
        x = self_attention(x, self.norm1, self.attn) + self.conv_scale * local
        return feed_forward(x, self.norm2, self.mlp, norm_first=True)


class OverlappingLayer(Preparable):
    """x + attention(LN(x)) to windows larger by `overlap` at each side, then x + MLP(LN(x))."""

    def __init__(self, dim: int, num_heads: int, window_size: int, overlap: int, mlp_ratio: float):
        super().__init__()
        self.num_heads, self.window_size, self.overlap = num_heads, window_size, overlap
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        table = torch.empty((2 * (window_size + overlap) - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        mixed = overlapping_window_attention(
            q,
            k,
            v,
            self.once("bias", self.bias, self),
            window_size=self.window_size,
            num_heads=self.num_heads,
            overlap=self.overlap,
        )
        x = x + self.proj(mixed)
        return feed_forward(x, self.norm2, self.mlp, norm_first=True)

    def bias(self) -> Tensor:
        """The table's entry of each query and key of a window: (heads, N, M)."""
        table = self.relative_position_bias_table
        index = overlapping_index(self.window_size, self.overlap, table.device)
        return table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)


def overlapping_index(window_size: int, overlap: int, device: torch.device | str) -> Tensor:
    """Row of HAT's bias table for each query and key of a window, (N, M)."""
    rows = (2 * (window_size + overlap) - 1) ** 2
    return authors_overlapping_index(window_size, overlap, device) % rows


def authors_overlapping_index(
    window_size: int, overlap: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The index as the authors' files hold it: negative numbers count from the table's end."""
    larger = window_size + 2 * overlap
    query, key = (torch.arange(length, device=device) for length in (window_size, larger))
    offset = key - query[:, None] + 1 - 2 * overlap
    index = offset[:, None, :, None] * (window_size + larger - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, larger**2)


class HybridGroup(LayerStack):
    """Hybrid layers, then an overlapping one."""

    def __init__(self, layers: Iterable[nn.Module], last: nn.Module):
        super().__init__(layers)
        self.overlap_attn = last

    def forward(self, x: Tensor) -> Tensor:
        return self.overlap_attn(super().forward(x))


class HAT(GroupedNetwork):
    """HAT with one of SwinIR's up-samplers, or HIIF in their place (scale=None).

    Args:
        compress_ratio: channels over those between the convolutions beside the attention.
        squeeze_factor: channels over those within the channel attention.
        conv_scale: factor of the convolutions' result.
        overlap: pixels by which the keys' windows of each group's last layer are larger at each
            side.
        others: as for SwinIR.
    """

    min_overlap = 32

    def __init__(
        self,
        scale: int | None = 4,
        *,
        dim: int,
        depths: list[int],
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        compress_ratio: int,
        squeeze_factor: int,
        conv_scale: float,
        overlap: int,
        decoder: dict[str, int],
        **frame: Any,
    ):
        config = {
            "dim": dim,
            "depths": list(depths),
            "num_heads": num_heads,
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            "compress_ratio": compress_ratio,
            "squeeze_factor": squeeze_factor,
            "conv_scale": conv_scale,
            "overlap": overlap,
            "decoder": dict(decoder),
        }

        def layer(shift: int) -> HybridLayer:
            return HybridLayer(
                dim,
                num_heads,
                window_size,
                shift,
                mlp_ratio,
                compress_ratio,
                squeeze_factor,
                conv_scale,
            )

        groups = [
            HybridGroup(
                alternating(depth, window_size, layer),
                OverlappingLayer(dim, num_heads, window_size, overlap, mlp_ratio),
            )
            for depth in depths
        ]
        super().__init__(scale, config, groups, Frame(**frame))
        self.pad_multiple = self.tile_multiple = window_size


HAT_M = {
    **SWINIR_M,
    "window_size": 16,
    "compress_ratio": 3,
    "squeeze_factor": 30,
    "conv_scale": 0.01,
    "overlap": 4,
}
register("hat_s", HAT, {**HAT_M, "dim": 144, "compress_ratio": 24, "squeeze_factor": 24})
register("hat", HAT, HAT_M)
register("hat_large", HAT, {**HAT_M, "depths": [6] * 12})
