"""Colour augmentation: grey patches, drawn patches and permuted channels.

Photographs alone teach a small network a white balance: it then tints grey pictures and lets flat
areas ripple. Everything drawn here comes from the sample's own generator, so a batch stays a
function of (seed, step, sample).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""BT.601 weights of R, G, B."""
MOST_SHAPES = 5


class Augmentation(BaseModel):
    """Shares of the samples that are changed, and whether the others' channels are permuted."""

    model_config = ConfigDict(extra="forbid")

    permute: bool = Field(
        default=False, description="put R, G, B of a colour patch in a random order"
    )
    grey: float = Field(default=0.0, ge=0, le=1, description="share of patches turned grey")
    drawn: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of patches of flat colours, lines and discs instead",
    )

    def draw(self, rng: np.random.Generator) -> Change:
        """The change of one sample; nothing is drawn from `rng` if nothing is asked for."""
        drawn = grey = False
        if self.grey or self.drawn:
            share = rng.random()
            drawn, grey = share < self.drawn, self.drawn <= share < self.drawn + self.grey
        order = tuple(rng.permutation(3).tolist()) if self.permute else (0, 1, 2)
        return Change(drawn, grey, order)


class Change(NamedTuple):
    """The changes to one sample.

    Attributes:
        drawn: a drawing takes the photograph's place.
        grey: the patch becomes grey.
        order: the source of each channel.
    """

    drawn: bool
    grey: bool
    order: tuple[int, ...]

    def recolour(self, image: Tensor) -> Tensor:
        """Apply `grey` and `order` to a uint8 image (3, H, W)."""
        if self.grey:
            weights = torch.tensor(LUMA)[:, None, None]
            luma = (image.float() * weights).sum(0).round_().to(torch.uint8)
            return luma.expand(3, -1, -1)
        return image if self.order == (0, 1, 2) else image[list(self.order)]


def drawing(rng: np.random.Generator, side: int) -> Tensor:
    """A flat colour with up to MOST_SHAPES boxes, bars and discs on it, uint8 (3, side, side).

    Half of the drawings are grey. Edges are as sharp as one pixel's coverage allows.
    """
    grey = rng.random() < 0.5
    y, x = np.mgrid[:side, :side].astype(np.float32) + 0.5

    def colour() -> np.ndarray:
        values = rng.integers(0, 256, 1 if grey else 3).astype(np.float32)
        return np.broadcast_to(values, 3)[:, None, None]

    picture = np.broadcast_to(colour(), (3, side, side))
    for _ in range(int(rng.integers(MOST_SHAPES + 1))):
        centre_y, centre_x = rng.uniform(0, side, 2)
        angle = rng.choice([0.0, 0.0, rng.uniform(0, np.pi)])  # most lines on a page are upright
        along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        if rng.random() < 0.25:
            distance = np.hypot(along, across) - rng.uniform(2, side / 2)
        else:
            length, breadth = rng.uniform(2, side), rng.choice([1, 2, 4, rng.uniform(1, side / 2)])
            distance = np.maximum(np.abs(along) - length, np.abs(across) - breadth / 2)
        coverage = np.clip(0.5 - distance, 0, 1)
        picture = picture + coverage * (colour() - picture)
    return torch.from_numpy(np.rint(picture).astype(np.uint8))
