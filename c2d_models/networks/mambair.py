"""MambaIR: SwinIR's frame around a scan of the map in four directions (arXiv 2402.15648).

Module names are the authors', so that their files load as they are.
"""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from c2d_kernels import selective_scan

from .frame import Frame
from .hat import ChannelAttention, ConvBlock
from .layers import DepthwiseConv, PointwiseConv, depthwise
from .mambairv2 import draw_steps
from .registry import HIIF_L, register
from .swinir import GroupedNetwork, LayerStack

DIRECTIONS = 4
"""Rows, columns, and both from their ends."""


class Scan2d(nn.Module):
    """Vision state-space module: a gate times the sum of four selective scans of the map.

    (B, H, W, dim) -> (B, H, W, dim). Each direction has its own step sizes, B, C, A and D.

    Args:
        dim: channels.
        ratio: channels of the scans, relative to dim.
        d_state: states of the scans, per channel.
    """

    def __init__(self, dim: int, ratio: float, d_state: int):
        super().__init__()
        hidden, rank = widened(dim, ratio), math.ceil(dim / 16)
        self.sizes = [rank, d_state, d_state]
        self.in_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.conv2d = depthwise(hidden, 3)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, sum(self.sizes), hidden))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, hidden, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, hidden))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * hidden, d_state))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * hidden))
        self.out_norm = nn.LayerNorm(hidden)
        self.out_proj = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's start: decay rates 1..N, step sizes log-uniform in [0.001, 0.1]."""
        for weight in (self.x_proj_weight, self.dt_projs_weight):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
        draw_steps(self.dt_projs_bias)
        with torch.no_grad():
            self.A_logs.copy_(
                torch.arange(1, self.A_logs.shape[1] + 1).log().expand_as(self.A_logs)
            )

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        y = self.scan(F.silu(self.conv2d(x)))
        return self.out_proj(self.out_norm(y) * F.silu(gate))

    def scan(self, x: Tensor) -> Tensor:
        """The sum of the scans in all directions, (B, H, W, hidden)."""
        height, width, hidden = x.shape[1:]
        rows, columns = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
        tokens = torch.stack([rows, columns, rows.flip(1), columns.flip(1)], dim=2)
        projected = torch.einsum("blkd,kcd->blkc", tokens, self.x_proj_weight)
        steps, entry, reading = projected.split(self.sizes, dim=-1)
        delta = torch.einsum("blkr,kdr->blkd", steps, self.dt_projs_weight)
        y = selective_scan(
            tokens.flatten(2).mT,
            delta.flatten(2).mT,
            -self.A_logs.exp(),
            rearrange(entry, "b l k n -> b k n l"),
            rearrange(reading, "b l k n -> b k n l"),
            self.Ds,
            delta_bias=self.dt_projs_bias.flatten(),
            delta_softplus=True,
        )
        along, down, back, up = y.mT.unflatten(2, (DIRECTIONS, hidden)).unbind(2)
        along, down = along + back.flip(1), down + up.flip(1)
        down = down.unflatten(1, (width, height)).transpose(1, 2)
        return along.unflatten(1, (height, width)) + down


class LightConvBlock(nn.Module):
    """Depthwise convolutions, the second dilated, around a narrow middle; channel attention."""

    def __init__(self, dim: int, squeeze_factor: int):
        super().__init__()
        narrow = dim // 2
        self.cab = nn.Sequential(
            PointwiseConv(dim, narrow),
            depthwise(narrow, 3),
            nn.GELU(),
            PointwiseConv(narrow, dim),
            DepthwiseConv(dim, dim, 3, padding=2, dilation=2, groups=dim),
            ChannelAttention(dim, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cab(x)


class StateSpaceLayer(nn.Module):
    """skip_scale * x + scan(LN(x)), then skip_scale2 * x + convolutions(LN(x))."""

    def __init__(self, dim: int, ratio: float, d_state: int, squeeze_factor: int, light: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = Scan2d(dim, ratio, d_state)
        self.ln_2 = nn.LayerNorm(dim)
        self.conv_blk = (
            LightConvBlock(dim, squeeze_factor) if light else ConvBlock(dim, 3, squeeze_factor)
        )
        self.skip_scale, self.skip_scale2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.skip_scale + self.self_attention(self.ln_1(x))
        return x * self.skip_scale2 + self.conv_blk(self.ln_2(x))


class MambaIR(GroupedNetwork):
    """MambaIR with one of SwinIR's up-samplers, or HIIF in their place (scale=None).

    Its scans and its channel attention see the whole map: of a picture in tiles, each tile.

    Args:
        scale: 2, 3, 4, ..., 1 for a network that restores, or None.
        dim: channels of the features.
        depths: layers in each residual group.
        mlp_ratio: channels of the scans, relative to dim.
        d_state: states of the scans, per channel.
        squeeze_factor: channels over those within the channel attention.
        light: whether the convolutions are depthwise, as in the lightweight network.
        decoder: HIIF's width, levels, heads and attentions, used if scale is None.
        frame: `Frame`'s fields.
    """

    pad_multiple = tile_multiple = 1
    min_overlap = 32  # enough to blend tiles

    def __init__(
        self,
        scale: int | None = 4,
        *,
        dim: int,
        depths: list[int],
        mlp_ratio: float,
        d_state: int,
        squeeze_factor: int,
        light: bool,
        decoder: dict[str, int],
        **frame: Any,
    ):
        config = {
            "dim": dim,
            "depths": list(depths),
            "mlp_ratio": mlp_ratio,
            "d_state": d_state,
            "squeeze_factor": squeeze_factor,
            "light": light,
            "decoder": dict(decoder),
        }

        def layer() -> nn.Module:
            return StateSpaceLayer(dim, mlp_ratio, d_state, squeeze_factor, light)

        groups = [LayerStack(layer() for _ in range(depth)) for depth in depths]
        super().__init__(scale, config, groups, Frame(**frame))


def widened(dim: int, ratio: float) -> int:
    """int(dim * ratio), also of a ratio that was read off two widths and so rounded."""
    return int(dim * ratio + 1e-6)


_MAMBAIR_L = {
    "dim": 60,
    "depths": [6, 6, 6, 6],
    "mlp_ratio": 1.2,
    "d_state": 10,
    "squeeze_factor": 30,
    "light": True,
    "decoder": HIIF_L,
}
register("mambair_l", MambaIR, _MAMBAIR_L)
register(
    "mambair",
    MambaIR,
    {
        **_MAMBAIR_L,
        "dim": 180,
        "depths": [6, 6, 6, 6, 6, 6],
        "mlp_ratio": 2,
        "d_state": 16,
        "light": False,
        "upsampler": "pixelshuffle",
    },
)
