"""SwinIR: shifted-window transformer for image restoration (arXiv 2108.10257).

Module names are the authors', so that their files load as they are.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from c2d_kernels import window_layer

from ..errors import NetworkError
from .frame import Frame
from .fused import Fused, WindowAttention
from .layers import Conv3x3, Mlp, init_linear
from .network import Network
from .registry import HIIF_L, TINY, register
from .upsamplers import upsampler


class TransformerLayer(Fused):
    """Transformer layer in windows: x + attention(LN(x)), then x + MLP(LN(x))."""

    attention_type: type[nn.Module]
    mlp_type: type[nn.Module]

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = self.attention_type(dim, window_size, num_heads, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = self.mlp_type(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SwinLayer(TransformerLayer):
    """Swin transformer layer, in one operator as long as nobody has changed one of its modules."""

    attention_type = WindowAttention
    mlp_type = Mlp

    def forward(self, x: Tensor) -> Tensor:
        attn, mlp = self.attn, self.mlp
        if type(attn) is not WindowAttention or type(mlp) is not Mlp:
            return super().forward(x)
        modules = {
            "norm1": self.norm1,
            "qkv": attn.qkv,
            "proj": attn.proj,
            "norm2": self.norm2,
            "fc1": mlp.fc1,
            "fc2": mlp.fc2,
        }
        weights = self.layer_weights("layer", modules, attn, mlp)
        if weights is None:
            return super().forward(x)
        return window_layer(
            x,
            attn.relative_position_bias_table,
            weights,
            window_size=attn.window_size,
            num_heads=attn.num_heads,
            shift=attn.shift,
            eps=self.norm1.eps,
        )


class LayerStack(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def alternating(
    depth: int, window_size: int, layer: Callable[[int], nn.Module]
) -> Iterator[nn.Module]:
    """Layers of a shift each: none, and half a window in every other one."""
    return (layer(i % 2 * (window_size // 2)) for i in range(depth))


class ResidualGroup(nn.Module):
    """Residual Swin transformer block: layers, a convolution, a residual connection around both."""

    def __init__(self, dim: int, layers: nn.Module, convolution: nn.Module):
        super().__init__()
        self.residual_group = layers
        self.conv = convolution

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group(x))


class Embedding(nn.Module):
    """The norm before the first layer, under the name that the authors' files give it."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class GroupedNetwork(Network):
    """SwinIR's frame around any layers: a convolution, residual groups, norm and convolution.

    Args:
        scale: the up-sampler's factor, 1 for one that restores; None for HIIF.
        config: the constructor's arguments, among them `dim` and `decoder`.
        groups: the layers of each residual group, one after the other.
        frame: the variant of the frame.
    """

    group_type: type[ResidualGroup] = ResidualGroup
    embedding_type: Callable[[int], nn.Module] = Embedding

    def __init__(
        self,
        scale: int | None,
        config: dict[str, Any],
        groups: Iterable[nn.Module],
        frame: Frame,
    ):
        super().__init__(scale, config | frame.config)
        if scale is None and frame.in_channels != 3:
            raise NetworkError("a continuous network is for RGB: in_channels must be 3")
        dim = config["dim"]
        self.frame = frame
        self.conv_first = Conv3x3(frame.in_channels, dim)
        self.patch_embed = self.embedding_type(dim)
        self.layers = nn.ModuleList(
            self.group_type(dim, layers, frame.convolution(dim)) for layers in groups
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = frame.convolution(dim)
        self.apply(init_linear)
        self.upsample = upsampler(dim, scale, frame.tail, config["decoder"])

    @property
    def in_channels(self) -> int:
        return self.frame.in_channels

    def body(self, image: Tensor) -> Tensor:
        shallow = self.conv_first(self.frame.entry(image))
        x = self.patch_embed(shallow)
        for layer in self.layers:
            x = layer(x)
        return shallow + self.conv_after_body(self.norm(x))


class SwinIR(GroupedNetwork):
    """SwinIR with one of its up-samplers, or HIIF in their place (scale=None).

    Args:
        scale: 2, 3, 4, ..., 1 for a network that restores, or None.
        dim: channels of the features.
        depths: layers in each residual group, their windows shifted by half in every other one.
        num_heads: attention heads in every layer.
        window_size: side of the attention windows.
        mlp_ratio: hidden channels of the MLPs, relative to dim.
        decoder: HIIF's width, levels, heads and attentions, used if scale is None.
        frame: `Frame`'s fields.
    """

    min_overlap = 32
    layer_type: Callable[[int, int, int, int, float], nn.Module] = SwinLayer

    def __init__(
        self,
        scale: int | None = 4,
        *,
        dim: int,
        depths: list[int],
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        decoder: dict[str, int],
        **frame: Any,
    ):
        config = {
            "dim": dim,
            "depths": list(depths),
            "num_heads": num_heads,
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            "decoder": dict(decoder),
        }

        def layer(shift: int) -> nn.Module:
            return self.layer_type(dim, num_heads, window_size, shift, mlp_ratio)

        groups = [LayerStack(alternating(depth, window_size, layer)) for depth in depths]
        super().__init__(scale, config, groups, Frame(**frame))
        self.pad_multiple = self.tile_multiple = window_size


SWINIR_L = {
    "dim": 60,
    "depths": [6, 6, 6, 6],
    "num_heads": 6,
    "window_size": 8,
    "mlp_ratio": 2,
    "decoder": HIIF_L,
}
SWINIR_M = {
    **SWINIR_L,
    "dim": 180,
    "depths": [6, 6, 6, 6, 6, 6],
    "upsampler": "pixelshuffle",
}
register("swinir_l", SwinIR, SWINIR_L)
register("swinir_m", SwinIR, SWINIR_M)
register("swinir_l_tiny", SwinIR, {**SWINIR_L, **TINY, "depths": [2, 2]})
