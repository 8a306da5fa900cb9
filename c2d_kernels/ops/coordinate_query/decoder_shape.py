"""The numbers of a decoder, and how the op's flat arguments fall into groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from .positions import Queries

if TYPE_CHECKING:
    Flat: TypeAlias = tuple[int, int, int, Sequence[int] | None, Tensor | None, Tensor | None]
    """levels, heads, attentions, size, coords, cell: a schema has them one by one."""


@dataclass(frozen=True)
class DecoderShape:
    """The decoder's numbers, which name and shape its weights.

    Attributes:
        width: channels of the features and of every MLP but the last, which gives RGB.
        levels: number of MLPs.
        heads: of the attentions; divides width.
        attentions: how many of the first MLPs an attention follows, less than levels.
    """

    width: int
    levels: int
    heads: int
    attentions: int

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in the order the op takes them."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {}
        for level in range(self.levels):
            # Four neighbours and rel_cell, or the level before; then a digit of y and one of x.
            inputs = (4 * width + 2 if level == 0 else width) + 2
            outputs = 3 if level == self.levels - 1 else width
            shapes[f"mlps.{level}.norm.weight"] = shapes[f"mlps.{level}.norm.bias"] = (inputs,)
            shapes[f"mlps.{level}.fc1.weight"] = (width, inputs)
            shapes[f"mlps.{level}.fc1.bias"] = (width,)
            shapes[f"mlps.{level}.fc2.weight"] = (outputs, width)
            shapes[f"mlps.{level}.fc2.bias"] = (outputs,)
        for index in range(self.attentions):
            shapes[f"attentions.{index}.qkv.weight"] = (3 * width, width)
            shapes[f"attentions.{index}.qkv.bias"] = (3 * width,)
            for norm in ("k_norm", "v_norm"):
                shapes[f"attentions.{index}.{norm}.weight"] = (self.head_dim,)
                shapes[f"attentions.{index}.{norm}.bias"] = (self.head_dim,)
            for proj in ("proj1", "proj2"):
                shapes[f"attentions.{index}.{proj}.weight"] = (width, width)
                shapes[f"attentions.{index}.{proj}.bias"] = (width,)
        return shapes

    def named(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """The op's list of weights by name."""
        return dict(zip(self.weight_shapes(), weights, strict=True))


def grouped(
    features: Tensor,
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None,
    coords: Tensor | None,
    cell: Tensor | None,
) -> tuple[DecoderShape, Queries]:
    """The op's arguments after features, image and weights, which a schema has one by one."""
    return DecoderShape(features.shape[-1], levels, heads, attentions), Queries(size, coords, cell)
