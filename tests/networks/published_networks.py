"""Published networks in plain PyTorch, channels first, by their papers, with the published names.

They look into nothing of this package: what their files make of it is compared with them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from published_hit import HierarchicalTransformerBlock
from published_layers import HAB, PSA_Block, SwinTransformerBlock, offsets_index, shift_mask
from published_mambair import VSSBlock
from published_mambairv2 import AttentiveLayer
from published_rectangles import OCAB, overlapping_index
from published_swin2sr import SwinTransformerBlock as CosineBlock
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(dim: int, kind: str) -> nn.Module:
    """The convolution after a group of layers."""
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    widths, kernels = (dim, dim // 4, dim // 4, dim), (3, 1, 3)
    steps = []
    for (before, after), kernel in zip(pairwise(widths), kernels, strict=True):
        steps += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*steps[:-1])


class Group(nn.Module):
    def __init__(self, layers: list[nn.Module], name: str, dim: int, kind: str):
        super().__init__()
        self.residual_group = nn.Module()
        setattr(self.residual_group, name, nn.ModuleList(layers))
        self.conv = convolution(dim, kind)
        self.name, self.patch_embed = name, None

    def forward(self, x: Tensor, size: tuple[int, int], *given: Any) -> Tensor:
        entry = x
        for layer in getattr(self.residual_group, self.name):
            own = (layer.window_size,) if isinstance(layer, HierarchicalTransformerBlock) else given
            x = layer(x, size, *own)
        if hasattr(self.residual_group, "overlap_attn"):
            last = self.residual_group.overlap_attn
            index = overlapping_index(last.window_size, last.overlap_win_size)
            x = last(x, size, index)
        x = self.conv(x.mT.unflatten(2, size))
        if self.patch_embed is not None:
            x = self.patch_embed.proj(x)
        return entry + x.flatten(2).mT


class PublishedNetwork(nn.Module):
    """SwinIR's frame (2108.10257) around layers.

    Args:
        make: a layer, of whether it is shifted.
        given: what a layer takes beside the map and its size, of the size.
        pad: "reflect", or "symmetric" as MambaIRv2 pads.
        projected: whether 1x1 convolutions precede the first norm and end each group (Swin2SR).
    """

    def __init__(
        self,
        make: Callable[[bool], nn.Module],
        *,
        scale: int,
        dim: int,
        window: int,
        upsampler: str,
        name: str = "blocks",
        depths: tuple[int, ...] = (2, 2),
        kind: str = "1conv",
        colours: int = 3,
        img_range: float = 1.0,
        num_feat: int = 64,
        given: Callable[[tuple[int, int]], tuple[Any, ...]] = lambda size: (),
        pad: str = "reflect",
        projected: bool = False,
    ):
        super().__init__()
        self.scale, self.window, self.upsampler = scale, window, upsampler
        self.img_range, self.given, self.padding = img_range, given, pad
        mean = [0.4488, 0.4371, 0.4040] if colours == 3 else [0.0]
        self.mean = torch.tensor(mean, dtype=torch.float64)[:, None, None]
        self.conv_first = nn.Conv2d(colours, dim, 3, padding=1)
        self.patch_embed = nn.Module()
        self.patch_embed.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            Group([make(bool(i % 2)) for i in range(depth)], name, dim, kind) for depth in depths
        )
        if projected:
            self.patch_embed.proj = nn.Conv2d(dim, dim, 1)
            for group in self.layers:
                group.patch_embed = nn.Module()
                group.patch_embed.proj = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = convolution(dim, kind)
        if upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(nn.Conv2d(dim, colours * scale**2, 3, padding=1))
            return
        if upsampler:
            first = nn.Conv2d(dim, num_feat, 3, padding=1)
            self.conv_before_upsample = nn.Sequential(first, nn.LeakyReLU(0.01))
        self.conv_last = nn.Conv2d(num_feat if upsampler else dim, colours, 3, padding=1)
        if upsampler == "pixelshuffle_aux":
            self.conv_bicubic = nn.Conv2d(colours, num_feat, 3, padding=1)
            self.conv_aux = nn.Conv2d(num_feat, colours, 3, padding=1)
            after = nn.Conv2d(colours, num_feat, 3, padding=1)
            self.conv_after_aux = nn.Sequential(after, nn.LeakyReLU(0.01))
        if upsampler.startswith("pixelshuffle"):
            steps: list[nn.Module] = []
            for factor in [3] if scale == 3 else [2] * (scale.bit_length() - 1):
                widened = nn.Conv2d(num_feat, factor**2 * num_feat, 3, padding=1)
                steps += [widened, nn.PixelShuffle(factor)]
            self.upsample = nn.Sequential(*steps)
        if upsampler == "nearest+conv":
            names = ["conv_up1", *(["conv_up2"] if scale == 4 else []), "conv_hr"]
            for name in names:
                setattr(self, name, nn.Conv2d(num_feat, num_feat, 3, padding=1))

    def padded(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        below, right = -height % self.window, -width % self.window
        if self.padding == "reflect":
            return F.pad(image, (0, right, 0, below), "reflect")
        image = torch.cat([image, image.flip(2)], 2)[:, :, : height + below]
        return torch.cat([image, image.flip(3)], 3)[:, :, :, : width + right]

    def tail(self, x: Tensor, image: Tensor) -> Tensor:
        if self.upsampler == "pixelshuffledirect":
            return F.pixel_shuffle(self.upsample(x), self.scale)
        if not self.upsampler:
            return image + self.conv_last(x)
        x = self.conv_before_upsample(x)
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        if self.upsampler == "pixelshuffle_aux":
            # Of the padded image: Swin2SR's authors squeeze that into the size without padding.
            bicubic = F.interpolate(image, scale_factor=self.scale, mode="bicubic")
            x = self.upsample(self.conv_after_aux(self.conv_aux(x)))
            return self.conv_last(x + self.conv_bicubic(bicubic))
        for name in ["conv_up1", "conv_up2"][: self.scale // 2]:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.leaky_relu(getattr(self, name)(x), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        image = (self.padded(image) - self.mean.to(image)) * self.img_range
        size = tuple(image.shape[2:])
        shallow = self.conv_first(image)
        x = getattr(self.patch_embed, "proj", nn.Identity())(shallow)
        x = self.patch_embed.norm(x.flatten(2).mT)
        for layer in self.layers:
            x = layer(x, size, *self.given(size))
        x = self.conv_after_body(self.norm(x).mT.unflatten(2, size)) + shallow
        out = self.tail(x, image) / self.img_range + self.mean.to(image)
        return out[:, :, : height * self.scale, : width * self.scale]


def swinir(
    scale: int, upsampler: str, *, dim: int = 24, window: int = 4, **options: Any
) -> nn.Module:
    def layer(shifted: bool) -> nn.Module:
        shift = window // 2 if shifted else 0
        return SwinTransformerBlock(dim, window, 3, shift, size=(2 * window, 2 * window))

    options |= {"scale": scale, "dim": dim, "window": window, "upsampler": upsampler}
    return PublishedNetwork(layer, **options)


def srformer(scale: int, upsampler: str, *, dim: int = 24, window: int = 8) -> nn.Module:
    return PublishedNetwork(
        lambda shifted: PSA_Block(dim, window, 3, window // 2 if shifted else 0),
        scale=scale,
        dim=dim,
        window=window,
        upsampler=upsampler,
    )


def hat(scale: int, upsampler: str, *, window: int = 4) -> nn.Module:
    def given(size: tuple[int, int]) -> tuple[Any, ...]:
        return offsets_index(window), shift_mask(*size, window, window // 2)

    net = PublishedNetwork(
        lambda shifted: HAB(24, window, 3, window // 2 if shifted else 0),
        scale=scale,
        dim=24,
        window=window,
        upsampler=upsampler,
        given=given,
    )
    for group in net.layers:
        group.residual_group.overlap_attn = OCAB(24, window, 0.5, 3)
    return net


def swin2sr(scale: int, upsampler: str, *, dim: int = 24, window: int = 4) -> nn.Module:
    return PublishedNetwork(
        lambda shifted: CosineBlock(dim, window, 3, window // 2 if shifted else 0),
        scale=scale,
        dim=dim,
        window=window,
        upsampler=upsampler,
        projected=True,
    )


def mambairv2(
    scale: int, upsampler: str, *, gated: bool, ratio: int, window: int = 4, **options: Any
) -> nn.Module:
    def given(size: tuple[int, int]) -> tuple[Any, ...]:
        mask = shift_mask(*size, window, window // 2)
        return ({"rpi_sa": offsets_index(window), "attn_mask": mask},)

    def layer(shifted: bool) -> nn.Module:
        shift = window // 2 if shifted else 0
        return AttentiveLayer(24, window, 3, shift, gated=gated, ratio=ratio, hidden=24 * ratio)

    return PublishedNetwork(
        layer,
        scale=scale,
        dim=24,
        window=window,
        upsampler=upsampler,
        name="layers",
        given=given,
        pad="symmetric",
        **options,
    )


def mambair(
    scale: int, upsampler: str, *, light: bool, ratio: float, dim: int = 24, **options: Any
) -> nn.Module:
    return PublishedNetwork(
        lambda shifted: VSSBlock(dim, ratio=ratio, light=light),
        scale=scale,
        dim=dim,
        window=1,
        upsampler=upsampler,
        **options,
    )


def hit(scale: int, *, context: bool, convolutional: bool, dim: int = 48) -> nn.Module:
    windows = iter((4, 8, 16) * 2)

    def layer(shifted: bool) -> nn.Module:
        options = {"context": context, "convolutional": convolutional}
        return HierarchicalTransformerBlock(dim, next(windows), 8, 2, **options)

    options = {"window": 1, "upsampler": "pixelshuffledirect", "depths": (3, 3)}
    return PublishedNetwork(layer, scale=scale, dim=dim, **options)
