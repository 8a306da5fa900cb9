"""HiT-SR: self-correlation in windows that grow from layer to layer (arXiv 2407.05878).

A group of layers goes through windows of 4 x 4 to 64 x 64. No layer has a softmax: queries meet the
values of a window pooled to few cells (spatial correlation), and the channels meet each other
(channel correlation), both linear in the window's area. HiT-SIR has SwinIR's MLP, HiT-SRF has
SRFormer's ConvFFN.

Module names are the authors', so that their files load as they are.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from c2d_kernels import channel_correlation, dual_features, spatial_correlation

from .frame import Frame
from .fused import ConvFFN, Fused, Mixer, PostNormLayer, is_leaky, matrix_of
from .layers import Conv3x3, Mlp, PointwiseConv
from .maps import crop, pad_to_multiple
from .preparable import Preparable
from .registry import HIIF_L, TINY, register
from .swinir import GroupedNetwork, LayerStack


class DualFeatureExtraction(Fused):
    """DFE(x) = conv branch (1x1, 3x3, 1x1 over dim / 5 channels) times linear branch."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = max(dim // 5, 1)
        self.conv = nn.Sequential(
            PointwiseConv(dim, hidden),
            nn.LeakyReLU(0.2),
            Conv3x3(hidden, hidden),
            nn.LeakyReLU(0.2),
            PointwiseConv(hidden, dim),
        )
        self.linear = PointwiseConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        local, first, conv, second, expand = self.conv
        modules = {"local": local, "conv": conv, "expand": expand, "linear": self.linear}
        around = (self, self.conv, first, second)
        weights = self.layer_weights("dfe", modules, *around, arrange=_flatten)
        if weights is None or not (is_leaky(first) and is_leaky(second)):
            return self.conv(x) * self.linear(x)
        return dual_features(x, weights)


def _flatten(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Linears that are stored as 1x1 convolutions, as Linears."""
    linear = ("local.weight", "expand.weight", "linear.weight")
    return {name: x.flatten(1) if name in linear else x for name, x in weights.items()}


class RelativeBias(Preparable):
    """A bias for each offset (y, x) in a window and each head, by an MLP of the offset.

    ((2w - 1)^2, num_heads), offsets from 1 - w to w - 1, row-major.
    """

    def __init__(self, dim: int, window_size: int, num_heads: int):
        super().__init__()
        self.window_size = window_size
        self.pos_proj = nn.Linear(2, dim)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, width))
            for width in (dim, dim, num_heads)
        )

    def forward(self, like: Tensor) -> Tensor:
        """The biases for a map `like`, in its dtype and on its device."""
        return self.once(f"table {like.dtype}", partial(self.table, like), *self.modules())

    def table(self, like: Tensor) -> Tensor:
        """The biases from the present weights."""
        offsets = torch.arange(1 - self.window_size, self.window_size, device=like.device)
        grid = torch.cartesian_prod(offsets, offsets).to(like.dtype)
        return self.pos3(self.pos2(self.pos1(self.pos_proj(grid))))


class SelfCorrelation(Mixer):
    """Spatial and channel correlation in a window of q, v = DFE(x), side by side, projected.

    (B, H, W, dim) -> (B, H, W, dim), any H and W: the map is mirrored to a multiple of the window
    before the DFE, whose convolution sees the mirrored pixels.
    """

    def __init__(self, dim: int, window_size: int, base_window: int, num_heads: int):
        super().__init__()
        self.window_size, self.base_window, self.num_heads = window_size, base_window, num_heads
        self.qv = DualFeatureExtraction(dim)
        self.proj = nn.Linear(dim, dim)
        self.cell = (window_size // min(window_size, base_window)) ** 2
        self.spatial_linear = nn.Linear(self.cell, 1)
        # A LayerNorm over fewer than three numbers would leave only the signs of the offsets.
        self.pos = RelativeBias(max(dim // 16, 3), window_size, num_heads)

    def parts(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        """The two correlations, (B, H, W, dim / 2) each."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window_size)
        q, v = self.qv(x).chunk(2, dim=-1)
        spatial = spatial_correlation(
            q,
            v,
            *matrix_of(self.spatial_linear, self.cell, x),
            self.pos(x),
            window_size=self.window_size,
            base_window=self.base_window,
            num_heads=self.num_heads,
        )
        channel = channel_correlation(q, v, window_size=self.window_size)
        return [crop(part, height, width) for part in (spatial, channel)]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat(self.parts(x), dim=-1))


class HiTLayer(PostNormLayer):
    """HiT-SIR's layer: x + LN(correlation(x)), then x + LN(MLP(x))."""

    mlp_type: type[nn.Module] = Mlp

    def __init__(
        self, dim: int, window_size: int, base_window: int, num_heads: int, mlp_ratio: float
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.correlation = SelfCorrelation(dim, window_size, base_window, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = self.mlp_type(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_and_feed(x, self.correlation)


class HiTConvLayer(HiTLayer):
    """HiT-SRF's layer: the same with a ConvFFN for the MLP."""

    mlp_type = ConvFFN


class HiTSIR(GroupedNetwork):
    """HiT-SIR with the direct pixel-shuffle up-sampler, or HIIF in its place (scale=None).

    Args:
        scale: 2, 3, 4, ... or None.
        dim: channels of the features.
        groups: how many residual groups.
        windows: window size of each layer of a group.
        base_window: most cells per axis to which a window's values are pooled.
        num_heads: heads of the spatial correlation.
        mlp_ratio: hidden channels of the MLPs, relative to dim.
        decoder: HIIF's width, levels, heads and attentions, used if scale is None.
    """

    pad_multiple = 1  # each layer pads its own windows by reflection
    layer_type: type[nn.Module] = HiTLayer

    def __init__(
        self,
        scale: int | None = 4,
        *,
        dim: int,
        groups: int,
        windows: list[int],
        base_window: int,
        num_heads: int,
        mlp_ratio: float,
        decoder: dict[str, int],
    ):
        config = {
            "dim": dim,
            "groups": groups,
            "windows": list(windows),
            "base_window": base_window,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "decoder": dict(decoder),
        }
        layers = [
            LayerStack(
                self.layer_type(dim, window, base_window, num_heads, mlp_ratio)
                for window in windows
            )
            for _ in range(groups)
        ]
        super().__init__(scale, config, layers, Frame())
        self.tile_multiple = math.lcm(*windows)
        self.min_overlap = max(windows)


class HiTSRF(HiTSIR):
    """HiT-SRF: HiT-SIR with SRFormer's ConvFFN. Arguments as for HiTSIR."""

    layer_type = HiTConvLayer


_HIT = {
    "dim": 60,
    "groups": 4,
    "windows": [4, 8, 16, 32, 48, 64],
    "base_window": 8,
    "num_heads": 6,
    "mlp_ratio": 2,
    "decoder": HIIF_L,
}
register("hit_sir", HiTSIR, _HIT)
register("hit_sir_tiny", HiTSIR, {**_HIT, **TINY, "groups": 2})
register("hit_srf", HiTSRF, _HIT)
