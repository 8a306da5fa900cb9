"""HIIF: an image as a function of continuous position, the continuous up-sampler (2412.03748)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from c2d_kernels import Region, coordinate_query, coordinate_query_moments

from .fused import weights_of
from .layers import Conv3x3

DECODERS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "hiif": {"width": 256, "levels": 6, "heads": 16, "attentions": 2},
        "hiif_l": {"width": 64, "levels": 3, "heads": 4, "attentions": 1},
    }
)
"""The numbers of HIIF's decoder: the published one, and HIIF-L, the preset of this project."""


class QueryMlp(nn.Module):
    """Parameters of LayerNorm -> Linear -> GELU -> Linear at one level of the hierarchy."""

    def __init__(self, in_features: int, width: int, out_features: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.fc1 = nn.Linear(in_features, width)
        self.fc2 = nn.Linear(width, out_features)


class QueryAttention(nn.Module):
    """Parameters of the linear attention over all queries, its two-layer output and residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.k_norm = nn.LayerNorm(width // heads)
        self.v_norm = nn.LayerNorm(width // heads)
        self.proj1 = nn.Linear(width, width)
        self.proj2 = nn.Linear(width, width)


class Decoder(nn.Module):
    """Weights of `c2d_kernels.coordinate_query`; its parameters' names are the operator's.

    Level 0 reads the four neighbours' features, the relative cell and a digit per axis
    (4 width + 4); each further level the running state and its own digits (width + 2). The last one
    gives RGB.
    """

    def __init__(self, width: int, levels: int, heads: int, attentions: int):
        super().__init__()
        in_features = [4 * width + 4] + [width + 2] * (levels - 1)
        out_features = [width] * (levels - 1) + [3]
        mlps = [QueryMlp(i, width, o) for i, o in zip(in_features, out_features, strict=True)]
        self.mlps = nn.ModuleList(mlps)
        self.attentions = nn.ModuleList(QueryAttention(width, heads) for _ in range(attentions))
        # Start at the operator's other term, the bilinear sample of the image.
        nn.init.zeros_(mlps[-1].fc2.weight)
        nn.init.zeros_(mlps[-1].fc2.bias)

    def weights(self, dtype: torch.dtype) -> Mapping[str, Any]:
        """The parameters by the operator's names, in its order; its layers if one has changed.

        Args:
            dtype: of the features: changed layers are called on it.
        """
        groups = {"mlps": self.mlps, "attentions": self.attentions}
        layers = {
            f"{name}.{index}.{part}": layer
            for name, group in groups.items()
            for index, block in enumerate(group)
            for part, layer in block.named_children()
        }
        weights = weights_of(layers, self, *self.mlps, *self.attentions)
        if weights is not None:
            return weights
        return {name: _in_dtype(layer, dtype) for name, layer in layers.items()}


def _in_dtype(layer: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The layer called in a dtype, for features that are summed in a wider one."""
    return lambda x: layer(x.to(dtype)).to(x.dtype)


class HIIF(nn.Module):
    """Continuous up-sampler: Conv3x3 to the decoder's width, then RGB at any position.

    `DECODERS` holds the numbers of HIIF and of HIIF-L by name.

    Args:
        dim: channels of the body's features.
        width: channels of the decoder; a multiple of `heads`.
        levels: MLPs, each with one more binary digit of the position inside the LR pixel.
        heads: heads of the linear attention.
        attentions: how many of the first MLPs a linear attention over all queries follows.
    """

    decode_margin = 1
    on_padded_map = False
    """LR pixels around an output pixel's own that its colour reads (attention apart)."""

    def __init__(self, dim: int, *, width: int, levels: int, heads: int, attentions: int):
        super().__init__()
        self.levels, self.heads, self.attentions = levels, heads, attentions
        self.conv = Conv3x3(dim, width)
        self.decoder = Decoder(width, levels, heads, attentions)

    def features(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, width), the map that positions are looked up in."""
        return self.conv(x)

    def decode(
        self,
        features: Tensor,
        image: Tensor,
        *,
        size: tuple[int, int] | None = None,
        coords: Tensor | None = None,
        cell: Tensor | None = None,
        region: Region | None = None,
        moments: list[Tensor] | None = None,
    ) -> Tensor:
        """Colours on the grid `size` -> (B, 3, h, w), or at `coords` (B, Q, 2) -> (B, Q, 3)."""
        colours = coordinate_query(
            features,
            rearrange(image, "b c h w -> b h w c"),
            self.decoder.weights(features.dtype),
            levels=self.levels,
            heads=self.heads,
            attentions=self.attentions,
            size=size,
            coords=coords,
            cell=cell,
            region=region,
            moments=moments,
        )
        return rearrange(colours, "b h w c -> b c h w") if coords is None else colours

    def decode_moments(
        self,
        features: Tensor,
        *,
        size: tuple[int, int],
        region: Region | None = None,
        moments: list[Tensor] | tuple[Tensor, ...] = (),
    ) -> Tensor:
        """(B, heads, d, d): sum of attention len(moments)'s k^T v over the grid's queries."""
        return coordinate_query_moments(
            features,
            self.decoder.weights(features.dtype),
            levels=self.levels,
            heads=self.heads,
            attentions=self.attentions,
            size=size,
            region=region,
            moments=moments,
        )
