"""Layers whose queries attend to the keys of a larger window, of HAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.mlp_branch.op import mlp_branch
from ..ops.overlapping_window_attention.op import overlapping_window_attention
from . import structure
from .plan import Plan, weights_of
from .structure import need, part


@dataclass(frozen=True)
class OverlappingAttention(Plan):
    """HAT's: forward(x (B, H W, C), x_size (H, W), rpi), an index into its table of biases."""

    names = ("OCAB",)
    operators = "overlapping_window_attention, mlp_branch"
    called = ("norm1", "qkv", "proj")

    heads: int
    overlap: int
    scale: float
    eps: float

    @classmethod
    def read(cls, layer: nn.Module) -> OverlappingAttention:
        structure.arguments(layer, "x", "x_size", "rpi")
        structure.only_children(layer, "", *cls.called, "norm2", "mlp", "unfold", "softmax")
        channels = structure.linear(layer, "proj", None, None).out_features
        structure.linear(layer, "qkv", channels, 3 * channels)
        structure.mlp(layer, channels)
        eps = structure.norm(layer, "norm2", channels).eps
        window, larger, heads = (
            structure.whole(layer, name)
            for name in ("window_size", "overlap_win_size", "num_heads")
        )
        need((larger - window) % 2 == 0, f"its windows of {larger} are not centred on {window}")
        unfold, padding = part(layer, "unfold"), (larger - window) // 2
        expected = nn.Unfold((larger, larger), 1, padding, window)
        need(repr(unfold) == repr(expected), f"its unfold is {unfold}, not {expected}")
        rows = (window + larger - 1) ** 2
        structure.parameter(layer, "relative_position_bias_table", (rows, heads))
        scale = structure.value(layer, "scale")
        if not isinstance(scale, float):
            raise structure.Unlike(f"scale is {scale!r}, not a number")
        return cls(cls.parts_of(layer), channels, (window, window), heads, padding, scale, eps)

    def run(
        self, layer: nn.Module, x: Tensor, x_size: tuple[int, int], rpi: Tensor
    ) -> Tensor | None:
        window = self.window[0]
        shape = (window**2, (window + 2 * self.overlap) ** 2)
        if not self.divides(x_size) or rpi.numel() != shape[0] * shape[1]:
            return None
        table = structure.tensor(layer, "relative_position_bias_table")
        bias = table[rpi.reshape(-1)].view(*shape, self.heads).permute(2, 0, 1)
        qkv = part(layer, "qkv")(part(layer, "norm1")(x).view(len(x), *x_size, self.channels))
        q, k, v = qkv.chunk(3, -1)
        out = overlapping_window_attention(
            q,
            k,
            v,
            bias,
            window_size=window,
            num_heads=self.heads,
            overlap=self.overlap,
            scale=self.scale,
        )
        out = part(layer, "proj")(out) + x.view(out.shape)
        modules = {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
        weights = weights_of(norm=part(layer, "norm2"), **modules)
        return mlp_branch(out, weights, eps=self.eps).view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        window = self.window[0]
        larger = window + 2 * self.overlap
        pairs = torch.arange(window**2 * larger**2, device=features.device)
        index = pairs * 7919 % (window + larger - 1) ** 2  # any: the layer is given one
        index = index.view(window**2, larger**2)
        return features.flatten(1, 2), tuple(features.shape[1:3]), index
