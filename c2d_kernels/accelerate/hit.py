"""HiT-SR's layers: correlation in windows of any size, then an MLP, norms last (2407.05878)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.channel_correlation.op import channel_correlation
from ..ops.conv_ffn.op import conv_ffn
from ..ops.dual_features.op import dual_features
from ..ops.res_post_norm.op import res_post_norm
from ..ops.spatial_correlation.op import spatial_correlation
from . import structure
from .plan import Plan, conv_mlp_weights, weights_of
from .structure import need, part

_CONTEXT = "correlation.ngram_window_partition.ngram_context"


@dataclass(frozen=True)
class HiTLayer(Plan):
    """forward(x (B, H W, C), x_size (H, W), win_size) of HiT-SIR, HiT-SRF and HiT-SNG."""

    names = ("HierarchicalTransformerBlock",)
    operators = "dual_features, spatial_correlation, channel_correlation, res_post_norm"
    called = ("correlation.pos", _CONTEXT)

    base_window: int
    heads: int
    eps: float
    convolutional: bool
    """Whether the MLP is SRFormer's (HiT-SRF)."""
    context: bool
    """Whether each window is given the context of its neighbours (HiT-SNG)."""

    @classmethod
    def read(cls, layer: nn.Module) -> HiTLayer:
        structure.arguments(layer, "x", "x_size", "win_size")
        correlation = part(layer, "correlation")
        channels = structure.linear(layer, "correlation.proj", None, None).out_features
        window = structure.side(layer, "window_size")
        need(
            window == structure.side(correlation, "window_size"), "its correlation's window differs"
        )
        base, heads = (
            structure.side(correlation, "base_win_size"),
            structure.whole(correlation, "num_heads"),
        )
        need(not channels % (2 * heads), f"{channels} channels do not divide into {heads} heads")
        need(not window % base, f"its window of {window} is not a multiple of {base}")
        scale = structure.value(correlation, "scale")
        width = channels // (2 * heads)
        need(scale == width, f"its correlation is divided by {scale}, not by the head's width")
        structure.linear(layer, "correlation.spatial_linear", (window // base) ** 2, 1)
        structure.pointwise(layer, "correlation.qv.linear", channels, channels)
        hidden = structure.pointwise(layer, "correlation.qv.conv.0", channels, None).out_channels
        structure.convolution(layer, "correlation.qv.conv.2", 3, 1)
        structure.pointwise(layer, "correlation.qv.conv.4", hidden, channels)
        for place in (1, 3):
            structure.leaky(layer, f"correlation.qv.conv.{place}", 0.2)
        convolutional = "dwconv" in part(layer, "mlp")._modules
        if convolutional:
            structure.conv_mlp(layer, "mlp", channels)
        else:
            structure.mlp(layer, channels)
        structure.value(layer, "check_image_size")
        norms = [structure.norm(layer, name, channels) for name in ("norm1", "norm2")]
        structure.same_eps(*norms)
        context = "ngram_window_partition" in correlation._modules
        if context:
            shift = structure.value(part(layer, "correlation.ngram_window_partition"), "shift_size")
            need(shift == 0, f"its context is shifted by {shift}")
        return cls(
            cls.parts_of(layer),
            channels,
            (window, window),
            base,
            heads,
            norms[0].eps,
            convolutional,
            context,
        )

    def run(
        self, layer: Any, x: Tensor, x_size: tuple[int, int], win_size: tuple[int, int]
    ) -> Tensor | None:
        height, width = x_size
        if tuple(win_size) != self.window:
            return None
        features = x.view(len(x), height, width, self.channels)
        unit = self.window[0] * (2 if self.context else 1)
        padded = layer.check_image_size(features, (unit, unit))  # its own way to mirror
        mixed = [each[:, :height, :width] for each in self._correlate(layer, padded)]
        modules = {"proj": part(layer, "correlation.proj"), "norm1": part(layer, "norm1")}
        if not self.convolutional:
            modules |= {name: part(layer, f"mlp.{name}") for name in ("fc1", "fc2")}
            modules["norm2"] = part(layer, "norm2")
        out = res_post_norm(features, mixed, weights_of(**modules), eps=self.eps)
        if self.convolutional:
            weights = conv_mlp_weights(part(layer, "mlp"), part(layer, "norm2"))
            out = conv_ffn(out, weights, norm_first=False, eps=self.eps)
        return out.view(x.shape)

    def _correlate(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both correlations of a map whose sides are multiples of the window."""
        correlation, window = part(layer, "correlation"), self.window[0]
        local, _, conv, _, expand = part(correlation, "qv.conv").children()
        linear = part(correlation, "qv.linear")
        weights = weights_of(local=local, conv=conv, expand=expand, linear=linear)
        qv = dual_features(x, weights)
        if self.context:
            batch, height, width, channels = qv.shape
            cells = (batch, height // window, window, width // window, window, channels)
            context = part(layer, _CONTEXT)(qv).view(batch, cells[1], 1, cells[3], 1, channels)
            qv = (qv.view(cells) + context).view(qv.shape)
        q, v = qv.chunk(2, dim=-1)
        pool: Any = part(correlation, "spatial_linear")
        offsets = torch.arange(1 - window, window, device=x.device)
        offsets = torch.cartesian_prod(offsets, offsets).to(pool.weight.dtype)
        spatial = spatial_correlation(
            q,
            v,
            pool.weight,
            weights_of(pool=pool)["pool.bias"],
            part(correlation, "pos")(offsets),
            window_size=window,
            base_window=self.base_window,
            num_heads=self.heads,
        )
        return spatial, channel_correlation(q, v, window_size=window)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        return features.flatten(1, 2), tuple(features.shape[1:3]), self.window
