"""Layers that several networks share.

Feature maps are channels-last, (B, H, W, C): linear layers and norms act on the last dimension as
it lies, and a convolution sees the same memory as a (B, C, H, W) tensor in `torch.channels_last`
format.
"""

from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelsLastConv(nn.Conv2d):
    """A convolution of a channels-last map, (B, H, W, in) -> (B, H, W, out).

    It and its kinds take nn.Conv2d's arguments: adapters make more of a layer's own class.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(rearrange(x, "b h w c -> b c h w"))
        return rearrange(y, "b c h w -> b h w c")


class Conv3x3(ChannelsLastConv):
    """3x3 convolution, zero-padded to the map's size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = "same",
        **options: Any,
    ):
        if padding == "same" and kernel_size == 3:
            padding = 1  # the same in numbers, which exporters know
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, **options)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution of a channels-last map: a Linear, stored as a convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        *arguments: Any,
        **options: Any,
    ):
        super().__init__(in_channels, out_channels, kernel_size, *arguments, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(ChannelsLastConv):
    """k x k convolution of each channel of a map by itself, zero-padded: see `depthwise`."""


def depthwise(dim: int, kernel_size: int) -> DepthwiseConv:
    """A DepthwiseConv of a map of `dim` channels."""
    return DepthwiseConv(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


class Mlp(nn.Module):
    """Linear(dim -> ratio * dim), GELU, Linear(ratio * dim -> dim) on the last dimension."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DepthwiseBranch(nn.Module):
    """GELU of a 5x5 depthwise convolution, under the name that SRFormer's files give it."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise_conv = nn.Sequential(depthwise(dim, 5), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise_conv(x)


def init_linear(module: nn.Module) -> None:
    """Swin's start for one Linear, for `Module.apply`: weight ~ truncated N(0, 0.02), bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
