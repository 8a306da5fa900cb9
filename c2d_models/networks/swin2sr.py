"""Swin2SR: SwinIR's frame around Swin V2's layers (arXiv 2209.11345).

Attention is of cosines, its bias an MLP's of the offset, and norms come last. Module names are the
authors', so that their files load as they are.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2d_kernels import cosine_window_attention, cosine_window_layer
from c2d_kernels.dispatch import plain
from c2d_kernels.ops.window_attention.cosine import swin_v2_tables

from .fused import Mixer, PostNormLayer, as_written
from .layers import Mlp, PointwiseConv
from .preparable import Preparable
from .registry import register
from .swinir import SWINIR_L, SWINIR_M, ResidualGroup, SwinIR

_HIDDEN = 512  # of the MLP that makes the bias


def coordinates(window_size: int, like: Tensor) -> Tensor:
    """The offsets, ((2w - 1)^2, 2), logarithmic, 8 being the window's side."""
    offsets = torch.arange(1 - window_size, window_size, device=like.device).to(like.dtype)
    offsets = offsets * 8 / max(window_size - 1, 1)
    offsets = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(8)
    return torch.cartesian_prod(offsets, offsets)


class PositionMlp(nn.Sequential, Preparable):
    """A bias for each offset (y, x) in a window and each head: ((2w - 1)^2, num_heads)."""

    def __init__(self, window_size: int, num_heads: int):
        super().__init__(
            nn.Linear(2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, num_heads, bias=False)
        )
        self.window_size = window_size

    def table(self, like: Tensor) -> Tensor:
        """The biases for a map `like`, in its dtype and on its device."""
        return self.once(f"table {like.dtype}", partial(self.make, like), *self.modules())

    def make(self, like: Tensor) -> Tensor:
        """The biases from the present weights."""
        return self(coordinates(self.window_size, like))


class CosineAttention(Mixer, Preparable):
    """Attention of cosines in (shifted) windows, projected: (B, H, W, dim) -> (B, H, W, dim)."""

    def __init__(self, dim: int, window_size: int, num_heads: int, shift: int):
        super().__init__()
        self.window_size, self.num_heads, self.shift = window_size, num_heads, shift
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = PositionMlp(window_size, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def projection(self) -> dict[str, Tensor] | None:
        """Weight and bias of the Linear to q, k and v; None if it is not as its class says."""
        if type(self.qkv) is not nn.Linear or not as_written(self.qkv):
            return None
        if not plain(self.qkv.weight):
            return None
        return {"qkv.weight": self.qkv.weight, "qkv.bias": self.bias()}

    def bias(self) -> Tensor:
        """That of q, k and v; k has none."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def projected(self, x: Tensor) -> Tensor:
        """q, k and v, side by side."""
        weights = self.projection()
        if weights is None:
            return self.qkv(x) + self.bias()
        return F.linear(x, weights["qkv.weight"], weights["qkv.bias"])

    def tables(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bias of each offset and the scale of cosines, for a map like x."""

        def make() -> tuple[Tensor, Tensor]:
            return swin_v2_tables(self.cpb_mlp.table(x), self.logit_scale)

        return self.once(f"tables {x.dtype}", make, self, *self.cpb_mlp.modules())

    def parts(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        """The attention, (B, H, W, dim)."""
        mixed = cosine_window_attention(
            self.projected(x),
            *self.tables(x),
            window_size=self.window_size,
            num_heads=self.num_heads,
            shift=self.shift,
        )
        return [mixed]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(*self.parts(x))


class Swin2SRLayer(PostNormLayer):
    """Swin V2's layer: x + LN(attention(x)), then x + LN(MLP(x))."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CosineAttention(dim, window_size, num_heads, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        done = self.in_one_piece(x)
        return self.mix_and_feed(x, self.attn) if done is None else done

    def in_one_piece(self, x: Tensor) -> Tensor | None:
        """The layer in one operator; None if a module was replaced, hooked or parametrized."""
        attention, mlp = self.attn, self.mlp
        if type(attention) is not CosineAttention or type(mlp) is not Mlp:
            return None
        projection = attention.projection()
        if projection is None:
            return None
        modules = {"proj": attention.proj, "norm1": self.norm1, "norm2": self.norm2}
        modules |= {"fc1": mlp.fc1, "fc2": mlp.fc2}
        weights = self.layer_weights(
            "whole",
            modules,
            attention,
            attention.qkv,
            mlp,
            arrange=lambda found: {**projection, **found},
        )
        if weights is None or self.norm1.eps != self.norm2.eps:
            return None
        return cosine_window_layer(
            x,
            *attention.tables(x),
            weights,
            window_size=attention.window_size,
            num_heads=attention.num_heads,
            shift=attention.shift,
            eps=self.norm1.eps,
        )


class Projection(nn.Module):
    """A 1x1 convolution, then a norm if there is one, as the authors' patch embedding."""

    def __init__(self, dim: int, norm: bool = True):
        super().__init__()
        self.proj = PointwiseConv(dim, dim)
        self.norm = nn.LayerNorm(dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x if self.norm is None else self.norm(x)


class ProjectedGroup(ResidualGroup):
    """A residual group whose convolution a 1x1 convolution follows."""

    def __init__(self, dim: int, layers: nn.Module, convolution: nn.Module):
        super().__init__(dim, layers, convolution)
        self.patch_embed = Projection(dim, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.patch_embed(self.conv(self.residual_group(x)))


class Swin2SR(SwinIR):
    """Swin2SR with one of SwinIR's up-samplers, or HIIF in their place (scale=None).

    Arguments as for SwinIR.
    """

    layer_type = Swin2SRLayer
    group_type = ProjectedGroup
    embedding_type = Projection


register("swin2sr_l", Swin2SR, SWINIR_L)
register("swin2sr_m", Swin2SR, SWINIR_M)
