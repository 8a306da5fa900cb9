"""Swin2SR's layers: attention of cosines, in its authors' and in Hugging Face's modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.cosine_window_layer.op import cosine_window_layer
from ..ops.window_attention.cosine import swin_v2_tables
from . import structure
from .plan import Plan, weights_of
from .structure import part
from .swin import is_of_cosines

_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class _CosineLayer(Plan):
    """Attention of cosines whose bias an MLP makes of the offset; norms last."""

    operators = "cosine_window_layer"

    heads: int
    shift: int
    eps: float

    def whole(
        self, x: Tensor, attention: Any, table: Tensor, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """The layer of a map (B, H, W, C)."""
        return cosine_window_layer(
            x,
            *swin_v2_tables(table.view(-1, self.heads), attention.logit_scale),
            weights,
            window_size=self.window[0],
            num_heads=self.heads,
            shift=self.shift,
            eps=self.eps,
        )

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), tuple(features.shape[1:3])


@dataclass(frozen=True)
class AuthorsSwin2SRLayer(_CosineLayer):
    """forward(x (B, H W, C), x_size (H, W)) of the authors' module (2209.11345)."""

    names = ("SwinTransformerBlock",)
    called = ("attn.cpb_mlp",)

    @classmethod
    def claims(cls, layer: nn.Module) -> bool:
        return is_of_cosines(layer)

    @classmethod
    def read(cls, layer: nn.Module) -> AuthorsSwin2SRLayer:
        structure.arguments(layer, "x", "x_size")
        attention = part(layer, "attn")
        channels = structure.linear(layer, "attn.proj", None, None).out_features
        structure.linear(layer, "attn.qkv", channels, 3 * channels)
        structure.mlp(layer, channels)
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        window, shift = structure.side(layer, "window_size"), structure.whole(layer, "shift_size")
        heads = structure.whole(attention, "num_heads")
        index = structure.value(attention, "relative_position_index")
        structure.same_values("relative_position_index", index, structure.position_index(window))
        structure.stored_mask(layer, window, shift)
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps)

    def run(self, layer: nn.Module, x: Tensor, x_size: tuple[int, int]) -> Tensor | None:
        if not self.divides(x_size):
            return None
        attention: Any = part(layer, "attn")
        modules = {"qkv": attention.qkv, "proj": attention.proj}
        modules |= {name: part(layer, name) for name in ("norm1", "norm2")}
        modules |= {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
        weights = {**weights_of(**modules)}
        if attention.q_bias is not None:
            none = torch.zeros_like(attention.v_bias)
            weights["qkv.bias"] = torch.cat([attention.q_bias, none, attention.v_bias])
        features = x.view(len(x), *x_size, self.channels)
        table = attention.cpb_mlp(attention.relative_coords_table)
        return self.whole(features, attention, table, weights).view(x.shape)


@dataclass(frozen=True)
class HuggingFaceSwin2SRLayer(_CosineLayer):
    """forward(hidden_states (B, H W, C), input_dimensions (H, W)) -> (hidden states,)."""

    names = ("Swin2SRLayer",)
    called = ("attention.self.continuous_position_bias_mlp",)

    @classmethod
    def read(cls, layer: nn.Module) -> HuggingFaceSwin2SRLayer:
        structure.arguments(layer, "hidden_states", "input_dimensions", "output_attentions")
        attention = part(layer, "attention.self")
        channels = structure.linear(layer, "attention.output.dense", None, None).out_features
        for name in _PROJECTIONS:
            structure.linear(layer, f"attention.self.{name}", channels, channels)
        hidden = structure.linear(layer, "intermediate.dense", channels, None).out_features
        structure.gelu(layer, "intermediate.intermediate_act_fn")
        structure.linear(layer, "output.dense", hidden, channels)
        places = ("layernorm_before", "layernorm_after")
        norms = [structure.norm(layer, name, channels) for name in places]
        structure.same_eps(*norms)
        window, shift = structure.side(layer, "window_size"), structure.whole(layer, "shift_size")
        heads = structure.whole(attention, "num_attention_heads")
        index = structure.value(attention, "relative_position_index")
        structure.same_values("relative_position_index", index, structure.position_index(window))
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps)

    def run(
        self,
        layer: nn.Module,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        output_attentions: bool | None = False,
    ) -> tuple[Tensor] | None:
        if output_attentions or not self.divides(input_dimensions):
            return None
        attention: Any = part(layer, "attention.self")
        projections = weights_of(**{name: part(attention, name) for name in _PROJECTIONS})
        qkv = {
            f"qkv.{kind}": torch.cat([projections[f"{name}.{kind}"] for name in _PROJECTIONS])
            for kind in ("weight", "bias")
        }
        features = hidden_states.view(len(hidden_states), *input_dimensions, self.channels)
        table = attention.continuous_position_bias_mlp(attention.relative_coords_table)
        weights = weights_of(
            proj=part(layer, "attention.output.dense"),
            norm1=part(layer, "layernorm_before"),
            fc1=part(layer, "intermediate.dense"),
            fc2=part(layer, "output.dense"),
            norm2=part(layer, "layernorm_after"),
        )
        out = self.whole(features, attention, table, {**qkv, **weights})
        return (out.view(hidden_states.shape),)
