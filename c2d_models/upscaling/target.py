"""The size that is asked for, and the passes that lead there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import UpscaleError

MAX_SCALE = 16
"""Largest factor: two passes."""
PASS_SCALE = 4
"""Largest factor of one pass: networks are trained up to it."""
SAME_ASPECT = 0.01  # an aspect that differs by less is the rounding of a size to whole pixels
_EXAMPLES = "write width x height, such as 1920x1080, or one of them: 1920x or x1080"


@dataclass(frozen=True)
class Target:
    """The size of the output: by one of the first five, by a factor of 4 if none is given.

    Attributes:
        scale: a factor, 1 to MAX_SCALE.
        width, height: in pixels. With one alone the image keeps its aspect; both must match the
            aspect to SAME_ASPECT unless `stretch` is set.
        fit: (height, width) of a box; the image becomes as large as fits inside.
        long_side: of the longer side, in pixels.
        stretch: `width` and `height` may change the aspect.

    Raises:
        UpscaleError: more than one is given, or one is out of range.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    fit: tuple[int, int] | None = None
    long_side: int | None = None
    stretch: bool = False

    def __post_init__(self) -> None:
        size = self.width if self.height is None else self.height
        asked = {"scale": self.scale, "size": size, "fit": self.fit, "long side": self.long_side}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) > 1:
            raise UpscaleError(f"{' and '.join(given)} are both given; choose one.")
        if self.scale is not None and not 1 <= self.scale <= MAX_SCALE:
            raise UpscaleError(f"scale is {self.scale:g}; it must be from 1 to {MAX_SCALE}.")
        for length in (self.width, self.height, self.long_side, *(self.fit or ())):
            if length is not None and length < 1:
                raise UpscaleError(f"{given[0]} asks for {length} pixels; give 1 or more.")

    @classmethod
    def of(cls, scale: Any = None, size: Any = None) -> Target:
        """A factor, or a (height, width) that may stretch, after a check of their types."""
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real)):
            raise UpscaleError(f"scale is {scale!r}; give a number from 1 to {MAX_SCALE}.")
        factor = None if scale is None else float(scale)
        if size is None:
            return cls(factor)
        whole = (
            isinstance(size, Sequence)
            and len(size) == 2
            and all(isinstance(side, Integral) and not isinstance(side, bool) for side in size)
        )
        if not whole:
            raise UpscaleError(f"size is {size!r}; give two whole numbers, (height, width).")
        height, width = size
        return cls(factor, height=int(height), width=int(width), stretch=True)

    @property
    def factor(self) -> float | None:
        """The factor if it is the same for every image, else None."""
        if self.scale is not None:
            return self.scale
        sizes = (self.width, self.height, self.fit, self.long_side)
        return 4.0 if all(size is None for size in sizes) else None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(H_out, W_out) of an image of height x width.

        Raises:
            UpscaleError: an axis would shrink, or grow by more than MAX_SCALE, or the aspect
                would change unasked.
        """
        if self.factor is not None:
            return _times(height, self.factor), _times(width, self.factor)
        if self.height is not None and self.width is not None:
            wanted = (self.height, self.width)
            change = (self.width * height) / (self.height * width)
            if not self.stretch and abs(change - 1) > SAME_ASPECT and min(height, width) > 1:
                raise UpscaleError(
                    f"size {self.width}x{self.height} would distort an image of {width}x{height}: "
                    f"use --fit {self.width}x{self.height} to keep its shape, or --stretch."
                )
        else:
            wanted = self._same_shape(height, width)
        for got, have, axis in zip(wanted, (height, width), ("height", "width"), strict=True):
            if not have <= got <= MAX_SCALE * have:
                raise UpscaleError(
                    f"size asks for {axis} {got} from {have}; each axis can grow by 1 to "
                    f"{MAX_SCALE}, here to {have} to {MAX_SCALE * have}."
                )
        return wanted

    def _same_shape(self, height: int, width: int) -> tuple[int, int]:
        """The size by one given length; the other axis follows."""
        if self.fit is not None:
            by_height = self.fit[0] * width <= self.fit[1] * height
            side = self.fit[0] if by_height else self.fit[1]
        elif self.long_side is not None:
            by_height, side = height >= width, self.long_side
        else:
            by_height = self.height is not None
            side = self.height or self.width or 1
        if by_height:
            return side, max(_times(width, side / height), 1)
        return max(_times(height, side / width), 1), side


def passes(
    size: tuple[int, int], wanted: tuple[int, int], step: int = PASS_SCALE
) -> list[tuple[int, int]]:
    """The sizes after each pass from `size` to `wanted`: all but the last grow `step` times."""
    sizes = []
    height, width = size
    while wanted[0] > step * height or wanted[1] > step * width:
        height, width = min(step * height, wanted[0]), min(step * width, wanted[1])
        sizes.append((height, width))
    return [*sizes, wanted]


def common_factor(size: tuple[int, int], wanted: tuple[int, int]) -> float | None:
    """The whole number by which both axes grow, or None."""
    factor = wanted[0] // size[0]
    return factor if wanted == (factor * size[0], factor * size[1]) else None


def parse_size(text: str, name: str = "size") -> tuple[int | None, int | None]:
    """The (width, height) of "1920x1080", "1920x" and "x1080".

    Raises:
        UpscaleError: the text is something else.
    """
    width, cross, height = text.lower().replace("×", "x").partition("x")
    sides = [side.strip() for side in (width, height)]
    if not cross or not any(sides) or not all(s.isascii() and s.isdecimal() for s in sides if s):
        raise UpscaleError(f"{name} is {text}; {_EXAMPLES}.")
    first, second = (int(side) if side else None for side in sides)
    return first, second


def _times(length: int, factor: float) -> int:
    return math.floor(length * factor + 0.5)
