"""DAT's layers: attention in rectangular windows, half of the heads in upright and half in wide
ones, and the gated feed-forward behind either kind of its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.gated_ffn.op import gated_ffn
from ..ops.overlapping_window_attention.op import overlapping_window_attention
from . import structure
from .plan import Plan, gated_mlp_weights
from .structure import need, part

_BRANCHES = ("attns.0", "attns.1")


@dataclass(frozen=True)
class AdaptiveSpatialAttention(Plan):
    """forward(x (B, H W, C), H, W): attention beside a convolution, each gated by the other."""

    names = ("Adaptive_Spatial_Attention",)
    operators = "overlapping_window_attention"
    called = (
        "qkv",
        *(f"{branch}.pos" for branch in _BRANCHES),
        "dwconv",
        "channel_interaction",
        "spatial_interaction",
        "proj",
        "proj_drop",
    )

    trial = (1, 2)  # of units, which have several windows

    windows: tuple[tuple[int, int], ...]
    shifts: tuple[tuple[int, int], ...]
    heads: int
    scale: float

    @classmethod
    def read(cls, layer: nn.Module) -> AdaptiveSpatialAttention:
        structure.arguments(layer, "x", "H", "W")
        structure.only_children(layer, "", *(name.split(".")[0] for name in cls.called))
        structure.only_children(layer, "attns", "0", "1")
        channels = structure.linear(layer, "proj", None, None).out_features
        structure.linear(layer, "qkv", channels, 3 * channels)
        windows, numbers = [], set()
        for branch in _BRANCHES:
            attention = part(layer, branch)
            structure.only_children(layer, branch, "pos", "attn_drop")
            height, width = (structure.whole(attention, side) for side in ("H_sp", "W_sp"))
            windows.append((height, width))
            heads, scale = (
                structure.whole(attention, "num_heads"),
                structure.value(attention, "scale"),
            )
            if not isinstance(scale, float):
                raise structure.Unlike(f"scale is {scale!r}, not a number")
            numbers.add((heads, scale))
            index = structure.tensor(attention, "relative_position_index")
            tokens = height * width
            fits = tuple(index.shape) == (tokens, tokens)
            need(fits, f"its index is {tuple(index.shape)}, not {(tokens, tokens)}")
        need(
            windows[0] == windows[1][::-1],
            f"its windows are {windows}, which are not each other's transpose",
        )
        need(len(numbers) == 1, "its two attentions differ in heads or scale")
        shifts = [(0, 0), (0, 0)]
        if getattr(layer, "attn_mask_0", None) is not None:
            size = structure.value(layer, "shift_size")
            if not isinstance(size, (tuple, list)) or len(size) != 2:
                raise structure.Unlike(f"shift_size is {size!r}, not two numbers")
            shifts = [(size[0], size[1]), (size[1], size[0])]
        (heads, scale), unit = numbers.pop(), (max(windows[0]),) * 2
        parts = cls.parts_of(layer)
        return cls(parts, channels, unit, tuple(windows), tuple(shifts), heads, scale)

    def run(self, layer: nn.Module, x: Tensor, H: int, W: int) -> Tensor:
        batch, unit = len(x), self.window[0]
        qkv = part(layer, "qkv")(x).view(batch, H, W, 3 * self.channels)
        padded = F.pad(qkv, (0, 0, 0, -W % unit, 0, -H % unit))
        branches = padded.unflatten(-1, (3, 2, -1)).unbind(4)
        found = [
            self._attend(number, part(layer, branch), features)[:, :H, :W]
            for number, (branch, features) in enumerate(zip(_BRANCHES, branches, strict=True))
        ]
        attended = torch.cat(found, -1)
        local = part(layer, "dwconv")(qkv[..., 2 * self.channels :].permute(0, 3, 1, 2))
        of_channels = part(layer, "channel_interaction")(local).sigmoid()
        of_pixels = part(layer, "spatial_interaction")(attended.permute(0, 3, 1, 2)).sigmoid()
        mixed = attended * of_channels.permute(0, 2, 3, 1)
        mixed = mixed + (of_pixels * local).permute(0, 2, 3, 1)
        return part(layer, "proj_drop")(part(layer, "proj")(mixed.reshape(x.shape)))

    def _attend(self, number: int, attention: nn.Module, features: Tensor) -> Tensor:
        """Attention of one half of the channels, (B, H, W, 3, C/2), biased by a small network."""
        of_offset = part(attention, "pos")(structure.tensor(attention, "rpe_biases"))
        index = structure.tensor(attention, "relative_position_index")
        bias = of_offset[index.reshape(-1)].view(*index.shape, self.heads).permute(2, 0, 1)
        q, k, v = features.unbind(3)
        return overlapping_window_attention(
            q,
            k,
            v,
            bias,
            window_size=self.windows[number],
            num_heads=self.heads,
            shift=self.shifts[number],
            scale=self.scale,
        )

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), *features.shape[1:3]


@dataclass(frozen=True)
class DualAggregationLayer(Plan):
    """forward(x (B, H W, C), x_size (H, W)): an attention as it is, then the gated feed-forward."""

    names = ("DATB",)
    operators = "gated_ffn"
    called = ("norm1", "attn")

    eps: float

    @classmethod
    def read(cls, layer: nn.Module) -> DualAggregationLayer:
        structure.arguments(layer, "x", "x_size")
        structure.only_children(layer, "", *cls.called, "drop_path", "ffn", "norm2")
        structure.only_children(layer, "ffn", "fc1", "act", "sg", "fc2", "drop")
        channels = structure.linear(layer, "ffn.fc2", None, None).out_features
        norms = [structure.norm(layer, "norm2", channels)]
        norms.append(structure.gated_mlp(layer, "ffn", channels, 3))
        structure.same_eps(*norms)
        return cls(cls.parts_of(layer), channels, (8, 8), norms[0].eps)

    def run(self, layer: nn.Module, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        out = x + part(layer, "attn")(part(layer, "norm1")(x), *x_size)
        weights = gated_mlp_weights(part(layer, "ffn"), part(layer, "norm2"))
        return gated_ffn(out.view(len(x), *x_size, -1), weights, eps=self.eps).view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), tuple(features.shape[1:3])
