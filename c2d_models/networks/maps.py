"""Channels-last maps (B, H, W, C): their colours, borders and parts."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K, which the published networks subtract at their entry, add at their end."""


def colour_mean(like: Tensor, channels: int) -> Tensor:
    """(channels,) on the device and in the dtype of `like`: RGB_MEAN of three channels, else 0.

    Exact in float64 too.
    """
    if channels != len(RGB_MEAN):
        return like.new_zeros(channels)
    return torch.cat([like.new_full((1,), value) for value in RGB_MEAN])


def mirror_index(
    length: int, padded: int, device: torch.device | None = None, start: int = 0
) -> Tensor:
    """(padded,) int64: where start..start+padded-1 fall in a line of `length`, mirrored endlessly.

    The edge is not repeated (reflection), and a line of one pixel repeats that pixel: any size
    works. Plain arithmetic: the limits of `F.pad(mode="reflect")` become guards in an export.
    """
    period = torch.full((), max(2 * length - 2, 1), device=device)  # ONNX's % needs a tensor
    position = torch.arange(start, start + padded, device=device) % period
    return length - 1 - (length - 1 - position).abs()


def symmetric_index(length: int, padded: int, device: torch.device | None = None) -> Tensor:
    """As mirror_index, with the edge repeated (NumPy's "symmetric")."""
    position = torch.arange(padded, device=device) % torch.full((), 2 * length, device=device)
    return torch.minimum(position, 2 * length - 1 - position)


def pad_to_multiple(
    x: Tensor, multiple: int, index: Callable[..., Tensor] = mirror_index
) -> Tensor:
    """Mirror (B, H, W, C) at its lower and right edge until H and W are multiples of `multiple`.

    `index` says how: mirror_index or symmetric_index. The result is contiguous. Only what is
    missing is gathered, but in a compiled or exported program all of it: whether something is
    missing would be a guard.
    """
    for dim in (1, 2):
        length = x.shape[dim]
        padded = (length + multiple - 1) // multiple * multiple
        if torch.compiler.is_compiling():
            x = x.index_select(dim, index(length, padded, x.device))
        elif padded > length:
            missing = index(length, padded, x.device)[length:]
            x = torch.cat([x, x.index_select(dim, missing)], dim)
    return x.contiguous()


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """First `height` rows and `width` columns of (B, H, W, C): a view.

    In a compiled or exported program one gather of pixels: a slice, or a split, would put guards on
    the sizes into it.
    """
    if not torch.compiler.is_compiling():
        return x[:, :height, :width]
    rows = torch.arange(height, device=x.device)[:, None] * x.shape[2]
    pixels = rows + torch.arange(width, device=x.device)
    x = rearrange(x, "b h w c -> b (h w) c").index_select(1, pixels.flatten())
    return rearrange(x, "b (h w) c -> b h w c", h=height, w=width)
