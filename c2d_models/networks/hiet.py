"""HiET: a transformer whose blocks are a U over window size, with hierarchical encoding.

After C2D-ISR (arXiv 2503.13740). A block runs layers with windows 64, 32, w, 32, 64 at constant
resolution, joins layers of equal windows by skips, and ends in a convolution. Wide windows mix by
channel correlation (HiT-SR, arXiv 2407.05878), linear in their area; the bottom of the U attends
within w x w pixels. What surrounds the mixers in a layer is the backbone's, after which a HiET is
named.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2d_kernels import channel_correlation, dual_features

from ..errors import NetworkError
from .fused import (
    ConvFFN,
    Fused,
    Mixer,
    PermutedWindowAttention,
    PostNormLayer,
    WindowAttention,
    is_leaky,
    matrix_of,
)
from .layers import Conv3x3, Mlp, init_linear
from .mambairv2 import STATE_SPACE, AttentiveLayer
from .network import Network
from .registry import HIIF_L, TINY, register
from .upsamplers import BilinearPixelShuffle, upsampler


def digit_levels(window_size: int) -> int:
    """How many binary digits a place in a window has."""
    levels = window_size.bit_length() - 1
    if window_size != 1 << levels:
        raise NetworkError(f"window sizes must be powers of two; got {window_size}")
    return levels


def binary_digits(places: Tensor, levels: int) -> Tensor:
    """(n, levels): the last binary digits of places (n,) as -1 / +1, coarse to fine."""
    # ONNX knows no >>, and a CUDA graph no list of numbers that comes from the host.
    powers = torch.pow(2, torch.arange(levels - 1, -1, -1, device=places.device))
    ones = places[:, None] // powers % 2
    return 2.0 * ones - 1.0


class HierarchicalEncoding(nn.Module):
    """E: the binary digits of a pixel's place in its window, per axis, through a Linear.

    The Linear is the parameter. It acts on the row's digits and on the column's separately, so E is
    a sum of what each row and each column has.
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__()
        self.levels = digit_levels(window_size)
        self.proj = nn.Linear(2 * self.levels, dim)

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """E's two parts, (H, dim) and (W, dim), for a map's digits (H, n) and (W, n), n >= levels.

        A window's own digits are the last ones.
        """
        rows, columns = rows[:, -self.levels :], columns[:, -self.levels :]
        weight, bias = matrix_of(self.proj, 2 * self.levels, rows)
        by_row, by_column = weight.chunk(2, dim=1)
        return F.linear(rows, by_row, bias), F.linear(columns, by_column)


class DualFeatureExtraction(Fused):
    """DFE(x) = conv branch (1x1, 3x3, 1x1 over dim / 5 channels) times linear branch (HiT-SR).

    Both branches begin with a product with x: they share one Linear.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.split = [max(dim // 5, 1), dim]
        self.entry = nn.Linear(dim, sum(self.split))
        self.conv = Conv3x3(self.split[0], self.split[0])
        self.expand = nn.Linear(self.split[0], dim)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, encoding: tuple[Tensor, Tensor]) -> Tensor:
        """The output for x (B, H, W, dim) plus encodings by row (H, dim) and column (W, dim)."""
        modules = {"entry": self.entry, "conv": self.conv, "expand": self.expand}
        weights = self.layer_weights("dfe", modules, self, self.activation, arrange=self._split)
        if weights is not None and is_leaky(self.activation):
            return dual_features(x, weights, encoding=encoding)
        by_row, by_column = encoding
        local, linear = self.entry(x + (by_row[:, None] + by_column)).split(self.split, dim=-1)
        local = self.activation(self.conv(self.activation(local)))
        return self.expand(local) * linear

    def _split(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The operator's two entries, which share a Linear here."""
        arranged = {name: value for name, value in weights.items() if "entry" not in name}
        for kind in ("weight", "bias"):
            local, linear = weights[f"entry.{kind}"].split(self.split)
            arranged |= {f"local.{kind}": local, f"linear.{kind}": linear}
        return arranged


class CorrelationMixer(Mixer):
    """Wide windows: q, v = DFE(x + E), their channel correlation beside v, projected.

    In each window of n pixels the correlation is v (q^T v / n)^T, with q and v of dim / 2 channels
    (HiT-SR's channel self-correlation).
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__()
        self.window_size = window_size
        self.encoding = HierarchicalEncoding(dim, window_size)
        self.dfe = DualFeatureExtraction(dim)
        self.proj = nn.Linear(dim, dim)

    def parts(self, x: Tensor, *place: Tensor) -> list[Tensor]:
        """The correlation and v, (B, H, W, dim / 2) each, for the digits of rows and columns."""
        q, v = self.dfe(x, self.encoding(*place)).chunk(2, dim=-1)
        return [channel_correlation(q, v, window_size=self.window_size), v]

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        return self.proj(torch.cat(self.parts(x, *place), dim=-1))


class AttentionMixer(WindowAttention, Mixer):
    """The bottom of the U: window attention, which has its own position table and needs no E."""

    def parts(self, x: Tensor, *place: Tensor) -> list[Tensor]:
        return [self.attend(x)]

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        return super().forward(x)


class PermutedAttentionMixer(PermutedWindowAttention, Mixer):
    """The same with SRFormer's attention, whose windows may be larger."""

    def parts(self, x: Tensor, *place: Tensor) -> list[Tensor]:
        return [self.attend(x)]

    def forward(self, x: Tensor, *place: Tensor) -> Tensor:
        return super().forward(x)


class HiETLayer(PostNormLayer):
    """HiET-SwinIR's layer: x + LN(mixer(x)), then x + LN(MLP(x)), as in HiT-SR."""

    mlp_type: type[nn.Module] = Mlp

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float):
        super().__init__()
        self.mixer = mixer
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = self.mlp_type(dim, mlp_ratio)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self.mix_and_feed(x, self.mixer, rows, columns)


class HiETConvLayer(HiETLayer):
    """HiET-SRFormer's layer: the same with a ConvFFN for the MLP."""

    mlp_type = ConvFFN


class HiETAttentiveLayer(AttentiveLayer):
    """HiET-MambaIRv2's layer: MambaIRv2's, with the mixer in the place of its attention."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, **state_space: Any):
        super().__init__(dim, mlp_ratio, **state_space)
        self.mixer = mixer

    def mix(self, x: Tensor, *place: Tensor) -> Tensor:
        return self.mixer(x, *place)


class HiETBlock(nn.Module):
    """A U over window size: down to the smallest windows, up again with skips, then a convolution.

    Args:
        dim: channels.
        windows: window sizes of the way down, e.g. [64, 32]; the way up mirrors them.
        bottom: the mixer between the two.
        layer: makes a layer of a mixer.
    """

    def __init__(
        self,
        dim: int,
        windows: list[int],
        bottom: nn.Module,
        layer: Callable[[nn.Module], nn.Module],
    ):
        super().__init__()
        self.down = nn.ModuleList(layer(CorrelationMixer(dim, window)) for window in windows)
        self.bottom = layer(bottom)
        self.skips = nn.ModuleList(nn.Linear(dim, dim) for _ in windows)
        self.up = nn.ModuleList(layer(CorrelationMixer(dim, window)) for window in windows[::-1])
        self.conv = Conv3x3(dim, dim)

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        entry = x
        passed = []
        for layer in self.down:
            x = layer(x, rows, columns)
            passed.append(x)
        x = self.bottom(x, rows, columns)
        for skip, layer in zip(self.skips, self.up, strict=True):
            x = layer(x + skip(passed.pop()), rows, columns)
        return entry + self.conv(x)


class HiET(Network):
    """HiET with SwinIR's window attention and MLP in its layers (HiET-SwinIR).

    Args:
        scale: 2, 3, 4, ... for a pixel-shuffle up-sampler, None for HIIF.
        dim: channels of the features.
        blocks: how many blocks; their attention is shifted by half a window in every other one.
        windows: window sizes of the way down a block's U, powers of two.
        bottom: window size at the bottom of the U, to a multiple of which the image is mirrored.
        num_heads: heads of the attention there.
        mlp_ratio: hidden channels of the MLPs, relative to dim.
        bottom_mixer: "attention", the backbone's, or "correlation", that of the wide windows.
        decoder: HIIF's width, levels, heads and attentions, used if scale is None.
        layer_options: what a subclass's `layer_type` takes besides.
    """

    layer_type: type[nn.Module] = HiETLayer
    attention_type: type[nn.Module] = AttentionMixer

    def __init__(
        self,
        scale: int | None = 4,
        *,
        dim: int,
        blocks: int,
        windows: list[int],
        bottom: int,
        num_heads: int,
        mlp_ratio: float,
        decoder: dict[str, int],
        bottom_mixer: str = "attention",
        **layer_options: Any,
    ):
        if bottom_mixer not in ("attention", "correlation"):
            raise NetworkError(
                f"bottom_mixer is {bottom_mixer!r}; give 'attention' or 'correlation'"
            )
        super().__init__(
            scale,
            {
                "dim": dim,
                "blocks": blocks,
                "windows": list(windows),
                "bottom": bottom,
                "num_heads": num_heads,
                "mlp_ratio": mlp_ratio,
                "bottom_mixer": bottom_mixer,
                **layer_options,
                "decoder": dict(decoder),
            },
        )
        self.pad_multiple = bottom
        self.period = self.tile_multiple = self.min_overlap = max(windows)
        self.conv_first = Conv3x3(3, dim)

        def layer(mixer: nn.Module) -> nn.Module:
            return self.layer_type(dim, mixer, mlp_ratio, **layer_options)

        def mixer_at_bottom(block: int) -> nn.Module:
            if bottom_mixer == "correlation":
                return CorrelationMixer(dim, bottom)
            return self.attention_type(dim, bottom, num_heads, block % 2 * (bottom // 2))

        self.blocks = nn.ModuleList(
            HiETBlock(dim, windows, mixer_at_bottom(block), layer) for block in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = Conv3x3(dim, dim)
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, DualFeatureExtraction):
                # Its output is a product of two branches, the correlation one of three of those:
                # with Swin's 0.02 they would vanish. HiT-SR's convolutions begin like this.
                module.entry.reset_parameters()
                module.expand.reset_parameters()
        self.upsample = upsampler(dim, scale, BilinearPixelShuffle, decoder)

    def positions(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The digits of rows (H, n) and of columns (W, n), for E, of maps like (B, H, W, ...).

        In training they count from a random place on. The windows lie still, but what E says of a
        pixel's place in them is rolled in every step, so that no grid of windows is learned into
        the picture.
        """
        height, width = like.shape[1:3]
        rows = torch.arange(height, device=like.device)
        columns = torch.arange(width, device=like.device)
        if self.training:
            roll = torch.randint(self.period, (2,), device=like.device)
            rows, columns = rows + roll[0], columns + roll[1]
        levels = digit_levels(self.period)
        digits = binary_digits(torch.cat([rows, columns]), levels).to(like.dtype)
        return digits[:height], digits[height:]

    def body(self, image: Tensor) -> Tensor:
        rows, columns = self.positions(image)
        x = shallow = self.conv_first(image - 0.5)
        for block in self.blocks:
            x = block(x, rows, columns)
        return shallow + self.conv_after_body(self.norm(x))


class HiETSRFormer(HiET):
    """HiET with SRFormer's permuted attention and ConvFFN in its layers (HiET-SRFormer)."""

    layer_type = HiETConvLayer
    attention_type = PermutedAttentionMixer


class HiETMambaIRv2(HiET):
    """HiET with MambaIRv2's state-space part and gated MLPs in its layers (HiET-MambaIRv2).

    Arguments as for HiET, and d_state, inner_rank, num_tokens, routing as for MambaIRv2.
    """

    layer_type = HiETAttentiveLayer


_HIET_SWINIR = {
    "dim": 60,
    "blocks": 4,
    "windows": [64, 32],
    "bottom": 8,
    "num_heads": 6,
    "mlp_ratio": 2,
    "decoder": HIIF_L,
}
_HIET_SRFORMER = {**_HIET_SWINIR, "bottom": 16}
_HIET_MAMBAIRV2 = {
    "dim": 48,
    "blocks": 4,
    "windows": [64, 32],
    "bottom": 16,
    "num_heads": 4,
    "mlp_ratio": 1,
    **STATE_SPACE,
    "decoder": HIIF_L,
}
register("hiet_swinir", HiET, _HIET_SWINIR)
register("hiet_swinir_tiny", HiET, {**_HIET_SWINIR, **TINY, "blocks": 2})
register("hiet_srformer", HiETSRFormer, _HIET_SRFORMER)
register("hiet_srformer_tiny", HiETSRFormer, {**_HIET_SRFORMER, **TINY, "blocks": 2})
register("hiet_mambairv2", HiETMambaIRv2, _HIET_MAMBAIRV2)
register("hiet_mambairv2_tiny", HiETMambaIRv2, {**_HIET_MAMBAIRV2, **TINY, "blocks": 2})
