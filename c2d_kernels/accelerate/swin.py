"""Layers whose attention is Swin's, of SwinIR and of HAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops.attention_branch.op import attention_branch
from ..ops.mlp_branch.op import mlp_branch
from ..ops.window_layer.op import window_layer
from . import masks, structure
from .plan import Plan, weights_of
from .structure import need, part


@dataclass(frozen=True)
class SwinIRLayer(Plan):
    """forward(x (B, H W, C), x_size (H, W)): attention and an MLP, each after a norm."""

    names = ("SwinTransformerBlock", "SwinTransformerLayer")
    operators = "window_layer"

    heads: int
    shift: int
    eps: float

    @classmethod
    def claims(cls, layer: nn.Module) -> bool:
        return not is_of_cosines(layer)

    @classmethod
    def read(cls, layer: nn.Module) -> SwinIRLayer:
        structure.arguments(layer, "x", "x_size")
        channels, window, heads = _read_attention(layer)
        structure.mlp(layer, channels)
        structure.only_children(layer, "", "norm1", "attn", "drop_path", "norm2", "mlp")
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        shift = structure.whole(layer, "shift_size")
        index = structure.value(part(layer, "attn"), "relative_position_index")
        structure.same_values("relative_position_index", index, structure.position_index(window))
        structure.stored_mask(layer, window, shift)
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps)

    def run(self, layer: nn.Module, x: Tensor, x_size: tuple[int, int]) -> Tensor | None:
        if not self.divides(x_size):
            return None
        modules = {name: part(layer, name) for name in ("norm1", "norm2")}
        modules |= {name: part(layer, f"attn.{name}") for name in ("qkv", "proj")}
        modules |= {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
        out = window_layer(
            x.view(len(x), *x_size, self.channels),
            part(layer, "attn").relative_position_bias_table,  # type: ignore[arg-type]
            weights_of(**modules),
            window_size=self.window[0],
            num_heads=self.heads,
            shift=self.shift,
            eps=self.eps,
        )
        return out.view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), tuple(features.shape[1:3])


@dataclass(frozen=True)
class HybridAttentionLayer(Plan):
    """HAT's: attention in windows beside a convolution of the same norm, then an MLP after one."""

    names = ("HAB",)
    operators = "attention_branch, mlp_branch"
    called = ("conv_block",)

    heads: int
    shift: int
    conv_scale: float
    eps: float

    @classmethod
    def read(cls, layer: nn.Module) -> HybridAttentionLayer:
        structure.arguments(layer, "x", "x_size", "rpi_sa", "attn_mask")
        channels, window, heads = _read_attention(layer)
        children = ("norm1", "attn", "conv_block", "drop_path", "norm2", "mlp")
        structure.only_children(layer, "", *children)
        structure.mlp(layer, channels)
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        shift = structure.whole(layer, "shift_size")
        scale = structure.value(layer, "conv_scale")
        if not isinstance(scale, float):
            raise structure.Unlike(f"conv_scale is {scale!r}, not a number")
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, scale, norms[0].eps)

    def run(
        self,
        layer: nn.Module,
        x: Tensor,
        x_size: tuple[int, int],
        rpi_sa: Tensor,
        attn_mask: Tensor,
    ) -> Tensor | None:
        window = self.window[0]
        if not (
            self.divides(x_size) and masks.are_swins(rpi_sa, attn_mask, x_size, window, self.shift)
        ):
            return None
        attention, norm = part(layer, "attn"), part(layer, "norm1")
        features = x.view(len(x), *x_size, self.channels)
        local = part(layer, "conv_block")(norm(features).permute(0, 3, 1, 2))
        projections = {name: part(attention, name) for name in ("qkv", "proj")}
        out = attention_branch(
            features,
            attention.relative_position_bias_table,  # type: ignore[arg-type]
            weights_of(norm=norm, **projections),
            window_size=window,
            num_heads=self.heads,
            shift=self.shift,
            eps=self.eps,
        )
        out = out + local.permute(0, 2, 3, 1) * self.conv_scale
        modules = {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
        weights = weights_of(norm=part(layer, "norm2"), **modules)
        return mlp_branch(out, weights, eps=self.eps).view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        (height, width), window = features.shape[1:3], self.window[0]
        index = structure.position_index(window).to(features.device)
        mask = structure.shift_mask(height, width, window, self.shift).to(features)
        return features.flatten(1, 2), (height, width), index, mask


def is_of_cosines(layer: nn.Module) -> bool:
    """Whether its attention is Swin V2's."""
    attention = layer._modules.get("attn")
    return attention is not None and "logit_scale" in attention._parameters


def _read_attention(layer: nn.Module) -> tuple[int, int, int]:
    """Channels, window and heads of `attn`, which is Swin's."""
    attention = part(layer, "attn")
    channels = structure.linear(layer, "attn.proj", None, None).out_features
    structure.linear(layer, "attn.qkv", channels, 3 * channels)
    window, heads = (
        structure.side(layer, "window_size"),
        structure.whole(attention, "num_heads"),
    )
    need(window == structure.side(attention, "window_size"), "its attention's window differs")
    structure.bias_table(attention, window, heads)
    structure.head_scale(attention, channels, heads)
    return channels, window, heads
