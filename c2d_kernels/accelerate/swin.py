"""Layers of SwinIR, of Swin2SR in its authors' and Hugging Face's modules, and of HAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.attention_branch.op import attention_branch
from ..ops.res_post_norm.op import res_post_norm
from ..ops.window_attention.op import window_attention
from ..ops.window_layer.op import window_layer
from . import masks, structure
from .plan import Plan, weights_of
from .structure import need, part

_LARGEST_SCALE = 100.0
"""At which the scale of cosines is cut off (Swin V2, 2111.09883, section 3.2)."""


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
        return not _of_cosines(layer)

    @classmethod
    def read(cls, layer: nn.Module) -> SwinIRLayer:
        structure.arguments(layer, "x", "x_size")
        channels, window, heads = _read_attention(layer)
        _read_mlp(layer, channels)
        structure.only_children(layer, "", "norm1", "attn", "drop_path", "norm2", "mlp")
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        shift = structure.whole(layer, "shift_size")
        index = structure.value(part(layer, "attn"), "relative_position_index")
        structure.same_values("relative_position_index", index, structure.position_index(window))
        _check_mask(layer, window, shift)
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps)

    def run(self, layer: nn.Module, x: Tensor, x_size: tuple[int, int]) -> Tensor | None:
        height, width = x_size
        if height % self.window[0] or width % self.window[1]:
            return None
        modules = {name: part(layer, name) for name in ("norm1", "norm2")}
        modules |= {name: part(layer, f"attn.{name}") for name in ("qkv", "proj")}
        modules |= {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
        out = window_layer(
            x.view(len(x), height, width, self.channels),
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
    operators = "attention_branch"
    called = ("conv_block", "norm2", "mlp")

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
        norm = structure.norm(layer, "norm1", channels)
        shift = structure.whole(layer, "shift_size")
        scale = structure.value(layer, "conv_scale")
        if not isinstance(scale, float):
            raise structure.Unlike(f"conv_scale is {scale!r}, not a number")
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, scale, norm.eps)

    def run(
        self,
        layer: nn.Module,
        x: Tensor,
        x_size: tuple[int, int],
        rpi_sa: Tensor,
        attn_mask: Tensor,
    ) -> Tensor | None:
        (height, width), window = x_size, self.window[0]
        if height % window or width % window or not masks.is_position_index(rpi_sa, window):
            return None
        if self.shift and not masks.is_shift_mask(attn_mask, height, width, window, self.shift):
            return None
        attention, norm = part(layer, "attn"), part(layer, "norm1")
        features = x.view(len(x), height, width, self.channels)
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
        out = out + part(layer, "mlp")(part(layer, "norm2")(out))
        return out.view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        (height, width), window = features.shape[1:3], self.window[0]
        index = structure.position_index(window).to(features.device)
        mask = structure.shift_mask(height, width, window, self.shift).to(features)
        return features.flatten(1, 2), (height, width), index, mask


@dataclass(frozen=True)
class CosineLayer(Plan):
    """Swin2SR's: attention of cosines, norms last, the bias by an MLP of the offset."""

    names = ("SwinTransformerBlock",)
    operators = "window_attention, res_post_norm"
    called = ("attn.cpb_mlp",)

    heads: int
    shift: int
    eps: float

    @classmethod
    def claims(cls, layer: nn.Module) -> bool:
        return _of_cosines(layer)

    @classmethod
    def read(cls, layer: nn.Module) -> CosineLayer:
        structure.arguments(layer, "x", "x_size")
        attention = part(layer, "attn")
        channels = structure.linear(layer, "attn.proj", None, None).out_features
        structure.linear(layer, "attn.qkv", channels, 3 * channels)
        _read_mlp(layer, channels)
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        window, shift = structure.side(layer, "window_size"), structure.whole(layer, "shift_size")
        heads = structure.whole(attention, "num_heads")
        index = structure.value(attention, "relative_position_index")
        structure.same_values("relative_position_index", index, structure.position_index(window))
        _check_mask(layer, window, shift)
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps)

    def run(self, layer: nn.Module, x: Tensor, x_size: tuple[int, int]) -> Tensor | None:
        height, width = x_size
        if height % self.window[0] or width % self.window[1]:
            return None
        attention: Any = part(layer, "attn")
        bias = None
        if attention.q_bias is not None:
            none = torch.zeros_like(attention.v_bias)
            bias = torch.cat([attention.q_bias, none, attention.v_bias])
        features = x.view(len(x), height, width, self.channels)
        qkv = F.linear(features, attention.qkv.weight, bias)
        table = attention.cpb_mlp(attention.relative_coords_table).view(-1, self.heads)
        mixed = cosine_attention(
            qkv, table, attention.logit_scale, self.window[0], self.heads, self.shift
        )
        modules = {"proj": attention.proj, "norm1": part(layer, "norm1")}
        modules |= {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
        weights = weights_of(**modules, norm2=part(layer, "norm2"))
        return res_post_norm(features, [mixed], weights, eps=self.eps).view(x.shape)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), tuple(features.shape[1:3])


def cosine_attention(
    qkv: Tensor, table: Tensor, logit_scale: Tensor, window: int, heads: int, shift: int
) -> Tensor:
    """Swin V2's attention of (B, H, W, 3 C): scale_h cos(q, k) + 16 sigmoid(table), shifted."""
    batch, height, width, _ = qkv.shape
    q, k, v = qkv.view(batch, height, width, 3, heads, -1).unbind(3)
    scale = logit_scale.clamp(max=torch.tensor(_LARGEST_SCALE).log().item()).exp().view(heads, 1)
    q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
    stacked = torch.stack([q, k.to(q.dtype), v.to(q.dtype)], 3).view(batch, height, width, -1)
    return window_attention(
        stacked,
        16 * table.sigmoid(),
        window_size=window,
        num_heads=heads,
        shift=shift,
        scale=1.0,
    )


def _of_cosines(layer: nn.Module) -> bool:
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


def _read_mlp(layer: nn.Module, channels: int) -> None:
    hidden = structure.linear(layer, "mlp.fc1", channels, None).out_features
    structure.linear(layer, "mlp.fc2", hidden, channels)
    structure.gelu(layer, "mlp.act")
    structure.only_children(layer, "mlp", "fc1", "act", "fc2", "drop")


def _check_mask(layer: nn.Module, window: int, shift: int) -> None:
    """The mask that a layer keeps for its training size: no trial on another size sees it."""
    mask = getattr(layer, "attn_mask", None)
    if mask is not None:
        resolution = structure.value(layer, "input_resolution")
        if not isinstance(resolution, (tuple, list)) or len(resolution) != 2:
            raise structure.Unlike(f"input_resolution is {resolution!r}, not (height, width)")
        expected = structure.shift_mask(resolution[0], resolution[1], window, shift)
        structure.same_values("attn_mask", mask, expected)
