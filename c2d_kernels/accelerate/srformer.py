"""SRFormer's layer: permuted attention and an MLP with a depthwise branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops.attention_branch.op import attention_branch
from ..ops.conv_ffn.op import conv_ffn
from . import structure
from .plan import Plan, conv_mlp_weights, weights_of
from .structure import part

_CELL = 2  # tokens a side that one key stands for


@dataclass(frozen=True)
class SRFormerLayer(Plan):
    """forward(x (B, H W, C), x_size (H, W)) of 2303.09735, sections 3.2 and 3.3."""

    names = ("PSA_Block",)
    operators = "attention_branch, conv_ffn"

    heads: int
    shift: int
    eps: float

    @classmethod
    def read(cls, layer: nn.Module) -> SRFormerLayer:
        structure.arguments(layer, "x", "x_size")
        attention = part(layer, "attn")
        channels = structure.linear(layer, "attn.q", None, None).out_features
        structure.linear(layer, "attn.kv", channels, channels // 2)
        structure.linear(layer, "attn.proj", channels, channels)
        structure.conv_mlp(layer, "mlp", channels)
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        window, shift = structure.side(layer, "window_size"), structure.whole(layer, "shift_size")
        structure.need(not window % 4 and not shift % 2, f"its window is {window}, shifted {shift}")
        heads = structure.whole(attention, "num_heads")
        structure.bias_table(attention, window // _CELL, heads)
        structure.head_scale(attention, channels, heads)
        index = structure.value(attention, "aligned_relative_position_index")
        expected = structure.position_index(window, _CELL)
        structure.same_values("aligned_relative_position_index", index, expected)
        structure.stored_mask(layer, window, shift, _CELL)
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps)

    def run(self, layer: nn.Module, x: Tensor, x_size: tuple[int, int]) -> Tensor | None:
        if not self.divides(x_size):
            return None
        attention = part(layer, "attn")
        projections = {name: part(attention, name) for name in ("q", "kv", "proj")}
        out = attention_branch(
            x.view(len(x), *x_size, self.channels),
            attention.relative_position_bias_table,  # type: ignore[arg-type]
            weights_of(norm=part(layer, "norm1"), **projections),
            window_size=self.window[0],
            num_heads=self.heads,
            shift=self.shift,
            eps=self.eps,
        )
        weights = conv_mlp_weights(part(layer, "mlp"), part(layer, "norm2"))
        return conv_ffn(out, weights, norm_first=True, eps=self.eps).view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), tuple(features.shape[1:3])
