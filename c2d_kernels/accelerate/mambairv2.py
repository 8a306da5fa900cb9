"""MambaIRv2's layers: window attention and an attentive state space, each before an MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.attention_branch.op import attention_branch
from ..ops.conv_ffn.op import conv_ffn
from ..ops.gated_ffn.op import gated_ffn
from ..ops.selective_scan.op import selective_scan
from . import masks, structure
from .plan import Plan, conv_mlp_weights, gated_mlp_weights, weights_of
from .structure import need, part

_MLPS = ("convffn1", "convffn2")
_NORMS = ("norm1", "norm2", "norm3", "norm4")


@dataclass(frozen=True)
class AttentiveLayer(Plan):
    """forward(x (B, H W, C), x_size (H, W), params) of 2411.15269, light (gated MLP) or larger."""

    names = ("AttentiveLayer",)
    operators = "attention_branch, conv_ffn or gated_ffn"
    called = ("assm",)

    heads: int
    shift: int
    eps: float
    gated: bool
    """Whether the MLPs are gated: one half of the channels times a convolution of the other."""

    @classmethod
    def read(cls, layer: nn.Module) -> AttentiveLayer:
        structure.arguments(layer, "x", "x_size", "params")
        attention = part(layer, "win_mhsa")
        channels = structure.linear(layer, "win_mhsa.proj", None, None).out_features
        structure.linear(layer, "wqkv", channels, 3 * channels)
        window, shift = structure.side(layer, "window_size"), structure.whole(layer, "shift_size")
        need(window == structure.side(attention, "window_size"), "its attention's window differs")
        heads = structure.whole(attention, "num_heads")
        structure.bias_table(attention, window, heads)
        structure.head_scale(attention, channels, heads)
        norms = [structure.norm(layer, name, channels) for name in _NORMS]
        gated = "sg" in part(layer, "convffn1")._modules
        for name in _MLPS:
            if gated:
                norms.append(structure.gated_mlp(layer, name, channels, 5))
            else:
                structure.conv_mlp(layer, name, channels)
        structure.same_eps(*norms)
        parts = cls.parts_of(layer)
        return cls(parts, channels, (window, window), heads, shift, norms[0].eps, gated)

    def run(
        self, layer: nn.Module, x: Tensor, x_size: tuple[int, int], params: dict[str, Tensor]
    ) -> Tensor | None:
        window, given = self.window[0], (params.get("rpi_sa"), params.get("attn_mask"))
        if not self.divides(x_size) or not masks.are_swins(*given, x_size, window, self.shift):
            return None
        size = (len(x), *x_size, self.channels)
        attention: Any = part(layer, "win_mhsa")
        scales = structure.tensor(layer, "scale1"), structure.tensor(layer, "scale2")
        out = attention_branch(
            x.view(size),
            attention.relative_position_bias_table,
            weights_of(norm=part(layer, "norm1"), qkv=part(layer, "wqkv"), proj=attention.proj),
            window_size=window,
            num_heads=self.heads,
            shift=self.shift,
            eps=self.eps,
        )
        out = self._feed(layer, out, "convffn1", "norm2") + x.view(size) * scales[0]
        tokens = out.view(x.shape)
        state_space, table = part(layer, "assm"), part(layer, "embeddingA")
        mixed = state_space(part(layer, "norm3")(tokens), x_size, table) + tokens
        mixed = self._feed(layer, mixed.view(size), "convffn2", "norm4")
        return (mixed + out * scales[1]).view(x.shape)

    def _feed(self, layer: nn.Module, x: Tensor, mlp: str, norm: str) -> Tensor:
        """x + MLP(LN(x)) of a map (B, H, W, C)."""
        if not self.gated:
            weights = conv_mlp_weights(part(layer, mlp), part(layer, norm))
            return conv_ffn(x, weights, norm_first=True, eps=self.eps)
        weights = gated_mlp_weights(part(layer, mlp), part(layer, norm))
        return gated_ffn(x, weights, eps=self.eps)

    def example(self, features: Tensor) -> tuple[Any, ...]:
        (height, width), window = features.shape[1:3], self.window[0]
        mask = structure.shift_mask(height, width, window, self.shift).to(features)
        index = structure.position_index(window).to(features.device)
        return features.flatten(1, 2), (height, width), {"attn_mask": mask, "rpi_sa": index}

    def stage(self, twin: nn.Module) -> None:
        # A token between two classes may fall to either by rounding: its own kind's trial, on
        # equal tokens, is the proof of the state space.
        twin._modules["assm"] = _Stand()


class _Stand(nn.Module):
    """In the place of the state space: what it is given, scaled by its token table."""

    def forward(self, x: Tensor, x_size: tuple[int, int], token: nn.Embedding) -> Tensor:
        return x * token.weight.mean()


@dataclass(frozen=True)
class AttentiveStateSpace(Plan):
    """forward(x (B, L, C), x_size (H, W), token): tokens sorted by class, scanned, put back.

    A token's class is drawn as the layer draws it, by the same calls on the same logits.
    """

    names = ("ASSM",)
    operators = "selective_scan"

    states: int
    rank: int
    """Of the step sizes."""
    prompt_rank: int

    @classmethod
    def read(cls, layer: nn.Module) -> AttentiveStateSpace:
        structure.arguments(layer, "x", "x_size", "token")
        channels = structure.linear(layer, "route.0", None, None).in_features
        hidden = structure.pointwise(layer, "in_proj.0", channels, None).out_channels
        structure.convolution(layer, "CPE.0", 3, hidden)
        structure.norm(layer, "out_norm", hidden)
        structure.linear(layer, "out_proj", hidden, channels)
        structure.only_children(layer, "in_proj", "0")
        structure.only_children(layer, "CPE", "0")
        states = structure.whole(layer, "d_state")
        scan = part(layer, "selectiveScan")
        rank = structure.whole(scan, "dt_rank")
        shapes = {
            "x_proj_weight": (1, rank + 2 * states, hidden),
            "dt_projs_weight": (1, hidden, rank),
            "dt_projs_bias": (1, hidden),
            "A_logs": (hidden, states),
            "Ds": (hidden,),
        }
        for name, shape in shapes.items():
            structure.parameter(scan, name, shape)
        prompt_rank = structure.whole(part(layer, "embeddingB"), "embedding_dim")
        return cls(cls.parts_of(layer), channels, (8, 8), states, rank, prompt_rank)

    def run(
        self, layer: nn.Module, x: Tensor, x_size: tuple[int, int], token: nn.Module
    ) -> Tensor | None:
        if x.dtype == torch.float64:  # as written it scans in float32
            return None
        batch, length, _ = x.shape
        prompts = part(layer, "embeddingB").weight @ token.weight  # type: ignore[operator]
        policy = F.gumbel_softmax(part(layer, "route")(x), hard=True, dim=-1)
        prompt = torch.matmul(policy, prompts).view(batch, length, self.states)
        order = policy.detach().argmax(dim=-1).sort(dim=-1, stable=False).indices
        features = x.view(batch, *x_size, self.channels).permute(0, 3, 1, 2)
        features = part(layer, "in_proj")(features)
        features = features * torch.sigmoid(part(layer, "CPE")(features))
        features = features.permute(0, 2, 3, 1).flatten(1, 2)
        image = torch.arange(batch, device=x.device)[:, None] * length
        order = (order + image).flatten()
        tokens = features.flatten(0, 1).index_select(0, order).view(features.shape)
        y = self._scan(part(layer, "selectiveScan"), tokens, prompt)
        y = part(layer, "out_proj")(part(layer, "out_norm")(y)).flatten(0, 1)
        places = torch.arange(len(order), device=x.device)
        inverse = torch.empty_like(order).scatter_(0, order, places)
        return y.index_select(0, inverse).view(x.shape)

    def _scan(self, scan: Any, x: Tensor, prompt: Tensor) -> Tensor:
        """The selective scan of x (B, L, hidden), its matrix C plus the prompts."""
        sizes = [self.rank, self.states, self.states]
        steps, entry, reading = F.linear(x, scan.x_proj_weight[0]).split(sizes, dim=-1)
        delta = F.linear(steps, scan.dt_projs_weight[0])
        out = selective_scan(
            x.float().mT,
            delta.float().mT,
            -scan.A_logs.float().exp(),
            entry.float().mT,
            (reading.float() + prompt).mT,
            scan.Ds.float(),
            delta_bias=scan.dt_projs_bias[0].float(),
            delta_softplus=True,
        )
        return out.mT

    def example(self, features: Tensor) -> tuple[Any, ...]:
        tokens, (height, width) = features.flatten(1, 2), features.shape[1:3]
        table = nn.Embedding(self.prompt_rank, self.states).to(features.device)
        return tokens, (height, width), table
