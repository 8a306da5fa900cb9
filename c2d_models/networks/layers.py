"""Layers that several networks share.

Feature maps are channels-last, (B, H, W, C): linear layers and norms act on the last dimension as
it lies, and a convolution sees the same memory as a (B, C, H, W) tensor in `torch.channels_last`
format.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class Conv3x3(nn.Conv2d):
    """3x3 convolution with zero padding of a channels-last map, (B, H, W, in) -> (B, H, W, out)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(rearrange(x, "b h w c -> b c h w"))
        return rearrange(y, "b c h w -> b h w c")


class PointwiseConv(nn.Conv2d):
    """1x1 convolution of a channels-last map: a Linear, stored as a convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(nn.Conv2d):
    """k x k convolution with zero padding of each channel of a channels-last map by itself."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(rearrange(x, "b h w c -> b c h w"))
        return rearrange(y, "b c h w -> b h w c")


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
        self.depthwise_conv = nn.Sequential(DepthwiseConv(dim, 5), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise_conv(x)


def init_linear(module: nn.Module) -> None:
    """Swin's start for one Linear, for `Module.apply`: weight ~ truncated N(0, 0.02), bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
