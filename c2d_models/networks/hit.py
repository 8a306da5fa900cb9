"""HiT-SR: self-correlation in windows that grow from layer to layer (arXiv 2407.05878).

A group of layers goes through windows of 4 x 4 to 64 x 64. No layer has a softmax: queries meet the
values of a window pooled to few cells (spatial correlation), and the channels meet each other
(channel correlation), both linear in the window's area. HiT-SIR has SwinIR's MLP, HiT-SRF has
SRFormer's ConvFFN, and HiT-SNG gives each window the context of its neighbours, as NGswin
(2211.11436) does.

Module names are the authors', so that their files load as they are.
"""

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from c2d_kernels import channel_correlation, dual_features, spatial_correlation

from .frame import Frame
from .fused import (
    ConvFFN,
    Fused,
    Mixer,
    PostNormLayer,
    WindowAttention,
    is_leaky,
    matrix_of,
)
from .layers import Conv3x3, Mlp, PointwiseConv
from .maps import crop, mirror_index, pad_to_multiple
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
        self.unit = window_size
        self.qv = DualFeatureExtraction(dim)
        self.proj = nn.Linear(dim, dim)
        self.cell = (window_size // min(window_size, base_window)) ** 2
        self.spatial_linear = nn.Linear(self.cell, 1)
        # A LayerNorm over fewer than three numbers would leave only the signs of the offsets.
        self.pos = RelativeBias(max(dim // 16, 3), window_size, num_heads)

    def features(self, x: Tensor) -> Tensor:
        """q and v, side by side."""
        return self.qv(x)

    def parts(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        """The two correlations, (B, H, W, dim / 2) each."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.unit)
        q, v = self.features(x).chunk(2, dim=-1)
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


class NGramContext(nn.Module):
    """A context for each window of a map from those beside it: (B, H, W, dim) -> (B, Y, X, dim).

    Each window becomes one token per pair of channels. Attention among 2x2 windows, averaged, gives
    the context of the window at their lower end; another, with the same weights, that at their
    upper end. Windows beyond the map are mirrored: the map has two at least along each axis.
    """

    def __init__(self, dim: int, window_size: int, num_heads: int):
        super().__init__()
        self.unigram_embed = nn.Conv2d(2, 1, window_size, stride=window_size)
        self.ngram_attn = WindowAttention(dim // 2, 2, num_heads)
        self.merge = PointwiseConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        pairs = rearrange(x, "b h w (d pair) -> (b d) pair h w", pair=2)
        tokens = rearrange(self.unigram_embed(pairs), "(b d) 1 h w -> b h w d", b=x.shape[0])
        return self.merge(torch.cat([self.neighbours(tokens, back) for back in (0, 1)], dim=-1))

    def neighbours(self, tokens: Tensor, back: int) -> Tensor:
        """The mean over attention among each token and the next ones, or the ones before."""
        for axis in (1, 2):
            length = tokens.shape[axis]
            mirrored = mirror_index(length, length + 1, tokens.device, -back)
            tokens = tokens.index_select(axis, mirrored.unfold(0, 2, 1).flatten())
        return rearrange(self.ngram_attn(tokens), "b (h y) (w x) c -> b h w y x c", y=2, x=2).mean(
            (3, 4)
        )


class NGramWindowPartition(nn.Module):
    """The module around the context, under the name that the authors' files give it."""

    def __init__(self, dim: int, window_size: int, num_heads: int):
        super().__init__()
        self.window_size = window_size
        self.ngram_context = NGramContext(dim, window_size, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """The map, each window's context added to it."""
        size = {"y": self.window_size, "x": self.window_size}
        windows = rearrange(x, "b (h y) (w x) c -> b h y w x c", **size)
        windows = windows + self.ngram_context(x)[:, :, None, :, None]
        return rearrange(windows, "b h y w x c -> b (h y) (w x) c")


class ContextCorrelation(SelfCorrelation):
    """The same after each window of q and v was given the context of its neighbours."""

    def __init__(self, dim: int, window_size: int, base_window: int, num_heads: int):
        super().__init__(dim, window_size, base_window, num_heads)
        self.unit = 2 * window_size
        self.ngram_window_partition = NGramWindowPartition(dim, window_size, num_heads)

    def features(self, x: Tensor) -> Tensor:
        return self.ngram_window_partition(super().features(x))


class HiTLayer(PostNormLayer):
    """HiT-SIR's layer: x + LN(correlation(x)), then x + LN(MLP(x))."""

    correlation_type: type[SelfCorrelation] = SelfCorrelation
    mlp_type: type[nn.Module] = Mlp

    def __init__(
        self, dim: int, window_size: int, base_window: int, num_heads: int, mlp_ratio: float
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.correlation = self.correlation_type(dim, window_size, base_window, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = self.mlp_type(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_and_feed(x, self.correlation)


class HiTConvLayer(HiTLayer):
    """HiT-SRF's layer: the same with a ConvFFN for the MLP."""

    mlp_type = ConvFFN


class HiTContextLayer(HiTLayer):
    """HiT-SNG's layer: the same with contexts for the windows."""

    correlation_type = ContextCorrelation


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


class HiTSNG(HiTSIR):
    """HiT-SNG: HiT-SIR whose windows see their neighbours. Arguments as for HiTSIR."""

    layer_type = HiTContextLayer


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
register("hit_sng", HiTSNG, _HIT)
