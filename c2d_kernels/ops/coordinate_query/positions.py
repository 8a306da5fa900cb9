"""Where queries fall on the LR map: cells, local offsets and their binary digits.

Grid positions are worked out in int64, exactly; free coordinates in their own floating dtype.
`u` is the position in LR pixels (0 is the centre of the first one), `i0 = floor(u)` and
`t = u - i0`; digit l of t is `floor(t 2^(l+1)) mod 2`, coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Queries:
    """Where the decoder is asked: a grid, a region of one, or coordinates.

    Attributes:
        size: (H_out, W_out) of the whole output grid, or None.
        coords: (B, Q, 2), where there is no grid.
        cell: (B, 2), the size of an output pixel beside coords.
        region: the part of the grid that is asked for, or None: all of it.
    """

    size: Sequence[int] | None
    coords: Tensor | None = None
    cell: Tensor | None = None
    region: Region | None = None

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """coords and cell, where there is no grid."""
        assert self.coords is not None and self.cell is not None
        return self.coords.detach(), self.cell.detach()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a grid, or of the region of it."""
        if self.region is None:
            assert self.size is not None
            return self.size[0], self.size[1]
        (top, bottom), (left, right) = self.region.rows, self.region.columns
        return bottom - top, right - left

    @property
    def extent(self) -> tuple[int, ...]:
        """Rows and columns, or how many coordinates there are."""
        if self.size is None:
            assert self.coords is not None
            return (self.coords.shape[1],)
        return self.grid

    @property
    def count(self) -> int:
        """Queries of one image."""
        return math.prod(self.extent)

    def shaped(self, rgb: Tensor) -> Tensor:
        """(B, count, 3) as the operator returns it: a grid has rows and columns."""
        return rgb if self.size is None else rgb.reshape(rgb.shape[0], *self.grid, 3)


class Axis(NamedTuple):
    """Positions along one axis, all of one shape."""

    low: Tensor  # int64, the neighbour i0, clamped to the map
    high: Tensor  # int64, the neighbour i0 + 1, clamped to the map
    t: Tensor  # distance from i0 before clamping, in [0, 1) up to rounding
    digits: list[Tensor]  # 0 or 1, one tensor a level


def grid_axis(
    start: int,
    stop: int,
    out_length: int,
    length: int,
    levels: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
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


def axes(features: Tensor, levels: int, queries: Queries) -> tuple[Axis, Axis, Tensor]:
    """Two axes of a grid, or (B, Q) positions twice, and rel_cell (1 or B, 2) in LR pixels."""
    size, region = queries.size, queries.region
    height, width = features.shape[1:3] if region is None else region.lr_size
    dtype = torch.promote_types(features.dtype, torch.float32)
    if size is None:
        coords, cell = queries.places
        down, across = coords.unbind(-1)
        y, x = free_axis(down, height, levels, dtype), free_axis(across, width, levels, dtype)
        return y, x, cell_in_pixels(cell, height, width)
    rows, columns = ((0, size[0]), (0, size[1])) if region is None else region[:2]
    y = grid_axis(*rows, size[0], height, levels, dtype, features.device)
    x = grid_axis(*columns, size[1], width, levels, dtype, features.device)
    if region is not None:
        y, x = (
            axis._replace(low=axis.low - origin, high=axis.high - origin)
            for axis, origin in zip((y, x), region.lr_origin, strict=True)
        )
    # new_tensor would freeze a symbolic size into the graph; full keeps it.
    rel = [
        torch.full((1,), 2 * lr / out, dtype=dtype, device=features.device)
        for lr, out in ((height, size[0]), (width, size[1]))
    ]
    return y, x, torch.stack(rel, dim=-1)


def every_pair(y: Axis, x: Axis) -> tuple[Axis, Axis]:
    """The axes of a grid as positions of its pixels, row by row: (1, Q) each."""
    # Shapes, not len(): that would fix a symbolic size when exporting.
    down, across = y.t.shape[0], x.t.shape[0]

    def repeated(axis: Axis, dim: int) -> Axis:
        low, high, t, *digits = (
            value.unsqueeze(dim).expand(down, across).reshape(1, -1)
            for value in (axis.low, axis.high, axis.t, *axis.digits)
        )
        return Axis(low, high, t, digits)

    return repeated(y, 1), repeated(x, 0)


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
