"""MambaIRv2: window attention, then an attentive state space (arXiv 2411.15269).

A state-space scan sees what came before a token only. MambaIRv2 lets it look ahead: it scans the
image once, its tokens sorted by a learned class, so that similar pixels are neighbours wherever
they lie, and adds a learned prompt of the class to the matrix C that reads the state.

Module names are the authors', so that their files load as they are.
"""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from c2d_kernels import gated_ffn, selective_scan

from ..errors import NetworkError
from .frame import Frame
from .fused import ConvFFN, FusedMlp, ProjectedWindowAttention, feed_forward
from .layers import PointwiseConv, depthwise
from .maps import symmetric_index
from .registry import HIIF_L, register
from .swinir import GroupedNetwork

ROUTINGS = ("argmax", "gumbel")
"""How an evaluated network may choose the class of a token; training samples (gumbel) always."""


class SpatialGate(nn.Module):
    """One half of the channels times a 5x5 depthwise convolution of the other half, normalised."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim // 2)
        self.conv = depthwise(dim // 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = x.chunk(2, dim=-1)
        return kept * self.conv(self.norm(gate))


class GatedMlp(FusedMlp):
    """Linear(dim -> ratio * dim), GELU, spatial gate, Linear(ratio * dim / 2 -> dim)."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.sg = SpatialGate(hidden)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.sg(F.gelu(self.fc1(x))))

    def branch(self, x: Tensor, norm: nn.LayerNorm, *, norm_first: bool) -> Tensor | None:
        gate = self.sg
        if not norm_first or type(gate) is not SpatialGate or gate.norm.eps != norm.eps:
            return None
        modules = {"norm": norm, "fc1": self.fc1, "gate_norm": gate.norm, "dwconv": gate.conv}
        weights = self.layer_weights("branch", {**modules, "fc2": self.fc2}, self, gate)
        return None if weights is None else gated_ffn(x, weights, eps=norm.eps)


MLPS: dict[str, type[nn.Module]] = {"gated": GatedMlp, "conv": ConvFFN}
"""The MLPs of MambaIRv2, light, and of the larger ones."""


class PromptedScan(nn.Module):
    """Selective scan of (B, L, dim) tokens whose matrix C is C(x) + prompt.

    Step sizes, B and C are one projection of the tokens; the scan reads its slice B in place.
    """

    def __init__(self, dim: int, d_state: int):
        super().__init__()
        rank = math.ceil(dim / 16)
        self.sizes = [rank, d_state, d_state]
        self.x_proj_weight = nn.Parameter(torch.empty(1, sum(self.sizes), dim))
        self.dt_projs_weight = nn.Parameter(torch.empty(1, dim, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(1, dim))
        self.A_logs = nn.Parameter(torch.empty(dim, d_state))
        self.Ds = nn.Parameter(torch.ones(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's start: decay rates 1..N, step sizes log-uniform in [0.001, 0.1]."""
        dim, d_state = self.A_logs.shape
        bound = dim**-0.5
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        bound = self.sizes[0] ** -0.5
        nn.init.uniform_(self.dt_projs_weight, -bound, bound)
        draw_steps(self.dt_projs_bias)
        with torch.no_grad():
            self.A_logs.copy_(torch.arange(1, d_state + 1).log().expand(dim, -1))

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """x (B, L, dim), prompt (B, L, d_state) -> (B, L, dim)."""
        steps, entry, reading = F.linear(x, self.x_proj_weight[0]).split(self.sizes, dim=-1)
        delta = F.linear(steps, self.dt_projs_weight[0])
        y = selective_scan(
            x.mT,
            delta.mT,
            -self.A_logs.exp(),
            entry.mT,
            (reading + prompt).mT,
            self.Ds,
            delta_bias=self.dt_projs_bias[0],
            delta_softplus=True,
        )
        return y.mT


def draw_steps(bias: Tensor) -> None:
    """Fill a bias whose softplus is the step size: log-uniform steps in [0.001, 0.1]."""
    step = torch.empty_like(bias).uniform_(math.log(0.001), math.log(0.1)).exp()
    with torch.no_grad():
        bias.copy_(step.expm1().log())


class AttentiveStateSpace(nn.Module):
    """Tokens gated by position, sorted by class, scanned with their classes' prompts, put back.

    The prompts of all classes are a low-rank product: an embedding (num_tokens, inner_rank) times
    the layer's token table (inner_rank, d_state). The prompts are added in the image's order
    although the tokens are scanned in the order of their classes: the published weights were
    trained with it.

    Args:
        dim: channels.
        ratio: channels of the scan, relative to dim.
        d_state: states of the scan, per channel.
        inner_rank: rank of the prompts.
        num_tokens: how many classes there are.
        routing: one of ROUTINGS, for evaluation.
    """

    def __init__(
        self,
        dim: int,
        ratio: float,
        d_state: int,
        inner_rank: int,
        num_tokens: int,
        routing: str,
    ):
        super().__init__()
        if routing not in ROUTINGS:
            raise NetworkError(f"routing must be one of {', '.join(ROUTINGS)}; got {routing!r}")
        hidden = int(dim * ratio)
        self.num_tokens, self.routing = num_tokens, routing
        self.in_proj = nn.Sequential(PointwiseConv(dim, hidden))
        self.CPE = nn.Sequential(depthwise(hidden, 3))  # conditional position encoding
        self.route = nn.Sequential(
            nn.Linear(dim, dim // 3), nn.GELU(), nn.Linear(dim // 3, num_tokens)
        )
        self.embeddingB = uniform_embedding(num_tokens, inner_rank)
        self.selectiveScan = PromptedScan(hidden, d_state)
        self.out_norm = nn.LayerNorm(hidden)
        self.out_proj = nn.Linear(hidden, dim)

    def classify(self, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's class (B, L), int64, and the prompt of that class (B, L, d_state).

        The largest logit wins (the first of equals), in training after Gumbel noise was added; the
        gradient then goes straight through to the softmax of the noisy logits.
        """
        logits = self.route(x)
        if self.routing == "argmax" and not self.training:
            classes = logits.argmax(-1)
            return classes, F.embedding(classes, prompts)
        # The log-softmax changes no softmax, but autocast runs it, and so the noise, in float32.
        policy = F.gumbel_softmax(logits.log_softmax(-1), hard=True, dim=-1)
        return policy.argmax(-1), policy @ prompts

    def forward(self, x: Tensor, token_table: Tensor) -> Tensor:
        """x (B, H, W, dim), token_table (inner_rank, d_state) -> (B, H, W, dim)."""
        batch, height, width, _ = x.shape
        prompts = table_of(self.embeddingB, self.num_tokens, x) @ token_table
        classes, prompt = self.classify(rearrange(x, "b h w c -> b (h w) c"), prompts)
        order, inverse = class_order(classes, self.num_tokens)
        x = self.in_proj(x)
        x = rearrange(x * self.CPE(x).sigmoid(), "b h w c -> (b h w) c")
        x = rearrange(x.index_select(0, order), "(b l) c -> b l c", b=batch)
        y = self.out_proj(self.out_norm(self.selectiveScan(x, prompt)))
        y = rearrange(y, "b l c -> (b l) c").index_select(0, inverse)
        return rearrange(y, "(b h w) c -> b h w c", b=batch, h=height, w=width)


def class_order(classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Where to gather from to sort tokens by class, and the inverse, (B * L,) int64 both.

    Args:
        classes: (B, L), int64, below num_classes. Equals keep their order; a batch is one sort,
            since an image's tokens come before those of the next.
    """
    batch, length = classes.shape
    image = torch.arange(batch, device=classes.device)[:, None]
    order = (image * num_classes + classes).flatten().sort(stable=True).indices
    places = torch.arange(batch * length, device=classes.device)
    return order, torch.zeros_like(order).scatter(0, order, places)


def uniform_embedding(rows: int, columns: int) -> nn.Embedding:
    """A table (rows, columns), uniform in +-1/rows."""
    embedding = nn.Embedding(rows, columns)
    nn.init.uniform_(embedding.weight, -1 / rows, 1 / rows)
    return embedding


def table_of(embedding: nn.Module, rows: int, like: Tensor) -> Tensor:
    """The whole table, by a call, so that an adapter or a hook acts on it."""
    return embedding(torch.arange(rows, device=like.device))


class AttentiveLayer(nn.Module):
    """Attentive state-space layer: a mixer of near pixels, an MLP, the state space, an MLP.

    Norms come first in their branches; each half ends with a scaled residual connection.
    A subclass says what the mixer is. Arguments as AttentiveStateSpace; `ratio` is the MLPs' too.
    """

    def __init__(
        self,
        dim: int,
        ratio: float,
        *,
        d_state: int,
        inner_rank: int,
        num_tokens: int,
        mlp: str = "gated",
        routing: str = "argmax",
    ):
        super().__init__()
        if mlp not in MLPS:
            raise NetworkError(f"mlp must be one of {', '.join(MLPS)}; got {mlp!r}")
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(2))
        self.convffn1, self.convffn2 = (MLPS[mlp](dim, ratio) for _ in range(2))
        self.assm = AttentiveStateSpace(dim, ratio, d_state, inner_rank, num_tokens, routing)
        self.inner_rank = inner_rank
        self.embeddingA = uniform_embedding(inner_rank, d_state)

    def mix(self, x: Tensor, *place: Tensor) -> Tensor:
        """The mixer, (B, H, W, dim) -> (B, H, W, dim)."""
        raise NotImplementedError

    def mix_with_skip(self, x: Tensor, *place: Tensor) -> Tensor:
        """The mixer with the norm before it and the residual connection around both."""
        return x + self.mix(self.norm1(x), *place)

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        """x (B, H, W, dim); `place` is handed on to the mixer."""
        entry = x
        x = self.mix_with_skip(x, *place)
        x = feed_forward(x, self.norm2, self.convffn1, norm_first=True) + entry * self.scale1
        entry = x
        x = x + self.assm(self.norm3(x), table_of(self.embeddingA, self.inner_rank, x))
        x = feed_forward(x, self.norm4, self.convffn2, norm_first=True)
        return x + entry * self.scale2


class WindowAttentiveLayer(AttentiveLayer):
    """MambaIRv2's layer: the mixer is attention in (shifted) windows."""

    def __init__(
        self,
        dim: int,
        ratio: float,
        num_heads: int,
        window_size: int,
        shift: int,
        **state_space: Any,
    ):
        super().__init__(dim, ratio, **state_space)
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = ProjectedWindowAttention(dim, window_size, num_heads, shift)

    def mix(self, x: Tensor, *place: Tensor) -> Tensor:
        return self.win_mhsa(self.wqkv(x))

    def mix_with_skip(self, x: Tensor, *place: Tensor) -> Tensor:
        attention, done = self.win_mhsa, None
        if type(attention) is ProjectedWindowAttention:
            done = attention.branch(x, self.norm1, {"qkv": self.wqkv})
        return super().mix_with_skip(x) if done is None else done


class LayerStack(nn.Module):
    """Attentive layers whose windows are shifted by half in every other one."""

    def __init__(
        self,
        depth: int,
        dim: int,
        ratio: float,
        num_heads: int,
        window_size: int,
        **state_space: Any,
    ):
        super().__init__()
        shifts = [i % 2 * (window_size // 2) for i in range(depth)]
        self.layers = nn.ModuleList(
            WindowAttentiveLayer(dim, ratio, num_heads, window_size, shift, **state_space)
            for shift in shifts
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MambaIRv2(GroupedNetwork):
    """MambaIRv2 with one of SwinIR's up-samplers, or HIIF in their place (scale=None).

    Args:
        scale: 2, 3, 4, ... or None.
        dim: channels of the features.
        depths: layers in each residual group.
        num_heads: attention heads in every layer.
        window_size: side of the attention windows.
        mlp_ratio: hidden channels of the MLPs and of the scan, relative to dim.
        d_state: states of the scan, per channel.
        inner_rank: rank of the prompts.
        num_tokens: classes that tokens are sorted by, with a prompt each.
        mlp: "gated" (light), or "conv", SRFormer's.
        routing: how an evaluated network chooses a token's class: "argmax", or "gumbel", at random
            as in the authors' code (training always does).
        decoder: HIIF's width, levels, heads and attentions, used if scale is None.
        frame: `Frame`'s fields.
    """

    min_overlap = 32  # enough to blend tiles; each is scanned by itself
    pad_index = staticmethod(symmetric_index)

    def __init__(
        self,
        scale: int | None = 4,
        *,
        dim: int,
        depths: list[int],
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        d_state: int,
        inner_rank: int,
        num_tokens: int,
        mlp: str = "gated",
        routing: str = "argmax",
        decoder: dict[str, int],
        **frame: Any,
    ):
        state_space = {
            "d_state": d_state,
            "inner_rank": inner_rank,
            "num_tokens": num_tokens,
            "mlp": mlp,
            "routing": routing,
        }
        config = {
            "dim": dim,
            "depths": list(depths),
            "num_heads": num_heads,
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            **state_space,
            "decoder": dict(decoder),
        }
        groups = [
            LayerStack(depth, dim, mlp_ratio, num_heads, window_size, **state_space)
            for depth in depths
        ]
        super().__init__(scale, config, groups, Frame(**frame))
        self.pad_multiple = self.tile_multiple = window_size


STATE_SPACE = {"d_state": 8, "inner_rank": 32, "num_tokens": 64}
_MAMBAIRV2_L = {
    "dim": 48,
    "depths": [5, 5, 5, 5],
    "num_heads": 4,
    "window_size": 16,
    "mlp_ratio": 1,
    **STATE_SPACE,
    "decoder": HIIF_L,
}
register("mambairv2_l", MambaIRv2, _MAMBAIRV2_L)
_MAMBAIRV2_BASE = {
    **_MAMBAIRV2_L,
    "dim": 174,
    "depths": [6, 6, 6, 6, 6, 6],
    "num_heads": 6,
    "mlp_ratio": 2,
    "d_state": 16,
    "inner_rank": 64,
    "num_tokens": 128,
    "mlp": "conv",
    "upsampler": "pixelshuffle",
}
register("mambairv2_base", MambaIRv2, _MAMBAIRV2_BASE)
register("mambairv2_large", MambaIRv2, {**_MAMBAIRV2_BASE, "depths": [6] * 9})
