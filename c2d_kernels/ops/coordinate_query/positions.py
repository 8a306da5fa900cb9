"""Where queries fall on the LR map: cells, local offsets and their binary digits.

Grid positions are worked out in int64, exactly; free coordinates in their own floating dtype.
`u` is the position in LR pixels (0 is the centre of the first one), `i0 = floor(u)` and
`t = u - i0`; digit l of t is `floor(t 2^(l+1)) mod 2`, coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Without these offsets float32 noise would throw a position that lies exactly on a pixel (or on a
# digit's boundary, as all do at x2 and x4) to the other side of it. Grids follow the same rule.
CELL_OFFSET = 2**13
DIGIT_OFFSET = 2**10


class Region(NamedTuple):
    """A tile: decode output rows a..b-1 and columns c..d-1 from a crop of the LR map.

    rows (a, b) and columns (c, d) of the whole output grid; `features` and `image` are the crop of
    an LR map of lr_size (H, W) that starts at lr_origin (y, x).
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    lr_origin: tuple[int, int]
    lr_size: tuple[int, int]


class Axis(NamedTuple):
    """Positions along one axis, all of one shape."""

    low: Tensor  # int64, the neighbour i0, clamped to the map
    high: Tensor  # int64, the neighbour i0 + 1, clamped to the map
    t: Tensor  # distance from i0 before clamping, in [0, 1) up to rounding
    digits: list[Tensor]  # 0 or 1, one tensor a level


def grid_axis(
    start: int, stop: int, out_length: int, length: int, levels: int, dtype: torch.dtype, device
) -> Axis:
    """Pixel centres start..stop-1 of an out_length grid over length LR pixels: u = a/b, exactly."""
    i = torch.arange(start, stop, device=device)
    a, b = (2 * i + 1) * length - out_length, 2 * out_length
    low = torch.div(a * CELL_OFFSET + b, b * CELL_OFFSET, rounding_mode="floor")
    remainder = a - low * b
    digits = []
    for level in range(levels):
        scaled = remainder * (2 ** (level + 1) * DIGIT_OFFSET)
        digit = torch.div(scaled + b, b * DIGIT_OFFSET, rounding_mode="floor")
        digits.append(digit.clamp(0, 2 ** (level + 1) - 1) % 2)
    t = (remainder.to(torch.float64) / b).to(dtype)
    return _axis(low, t, length, digits, dtype)


def free_axis(coordinate: Tensor, length: int, levels: int, dtype: torch.dtype) -> Axis:
    """Coordinates in [-1, 1] over length LR pixels, whose centres are (2i + 1)/length - 1."""
    u = (coordinate + 1) * length / 2 - 0.5
    low = torch.floor(u + 1 / CELL_OFFSET)
    t = u - low
    digits = []
    for level in range(levels):
        digit = torch.floor(t * 2 ** (level + 1) + 1 / DIGIT_OFFSET)
        digits.append(digit.clamp(0, 2 ** (level + 1) - 1) % 2)
    return _axis(low.long(), t.to(dtype), length, digits, dtype)


def axes(
    features: Tensor,
    levels: int,
    size: Sequence[int] | None,
    coords: Tensor | None,
    cell: Tensor | None,
    region: Region | None,
) -> tuple[Axis, Axis, Tensor]:
    """Two axes of a grid, or (B, Q) positions twice, and rel_cell (1 or B, 2) in LR pixels."""
    height, width = features.shape[1:3] if region is None else region.lr_size
    dtype = features.dtype
    if size is None:
        y, x = coords.detach().unbind(-1)
        rel_cell = cell_in_pixels(cell, height, width)
        y, x = free_axis(y, height, levels, dtype), free_axis(x, width, levels, dtype)
        return y, x, rel_cell
    rows, columns = ((0, size[0]), (0, size[1])) if region is None else region[:2]
    y = grid_axis(*rows, size[0], height, levels, dtype, features.device)
    x = grid_axis(*columns, size[1], width, levels, dtype, features.device)
    if region is not None:
        y, x = (
            axis._replace(low=axis.low - origin, high=axis.high - origin)
            for axis, origin in zip((y, x), region.lr_origin, strict=True)
        )
    return y, x, features.new_tensor([[2 * height / size[0], 2 * width / size[1]]])


def cell_in_pixels(cell: Tensor, height: int, width: int) -> Tensor:
    """rel_cell: `cell`, (B, 2), in pixels of a map of this size."""
    return torch.stack([cell[:, 0] * height, cell[:, 1] * width], dim=-1)


def _axis(low: Tensor, t: Tensor, length: int, digits: list[Tensor], dtype: torch.dtype) -> Axis:
    high = (low + 1).clamp(0, length - 1)
    return Axis(low.clamp(0, length - 1), high, t, [digit.to(dtype) for digit in digits])


def neighbour_range(start: int, stop: int, out_length: int, length: int) -> tuple[int, int]:
    """First and last LR pixel that grid positions start..stop-1 read."""

    def low(i: int) -> int:
        a, b = (2 * i + 1) * length - out_length, 2 * out_length
        return (a * CELL_OFFSET + b) // (b * CELL_OFFSET)

    return max(low(start), 0), min(low(stop - 1) + 1, length - 1)
