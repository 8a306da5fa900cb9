"""Random degradation of LR images, so that a network learns to enlarge everyday photographs.

An LR image is reduced by one of several kernels, perhaps by way of a larger lossy file, then
blurred, made noisy and compressed. Every strength is drawn from the sample's own generator,
and a share of the samples stays as bicubic reduction makes them: a network that never saw clean
input would smooth it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..images.degradations import add_gaussian_noise, add_shot_noise, blur, compress
from ..images.resize import KERNELS, nearest_level, resample, resize_taps

BLOCK = 8
"""Side of a JPEG's blocks. A WebP's are 4 and 16."""
STRONGEST_BLUR = 1.2
"""Standard deviation in LR pixels."""
STRONGEST_NOISE = 20.0
"""Standard deviation in levels."""
LARGEST_GAIN = 2.0
"""Levels per count of shot noise: a standard deviation of 16 at level 128."""
QUALITIES = (30, 95)


class Span(NamedTuple):
    """LR pixels along one axis: number, first edge and width in HR pixels."""

    size: int
    origin: float
    pitch: float


class Degradations(BaseModel):
    """Shares of the samples that meet each degradation."""

    model_config = ConfigDict(extra="forbid")

    clean: float = Field(0.2, ge=0, le=1, description="share of samples that meet none")
    kernel: float = Field(0.4, ge=0, le=1, description="reduced by another kernel than bicubic")
    again: float = Field(0.25, ge=0, le=1, description="compressed once before they are reduced")
    blur: float = Field(0.2, ge=0, le=1)
    noise: float = Field(0.4, ge=0, le=1)
    compress: float = Field(0.75, ge=0, le=1)

    def draw(self, rng: np.random.Generator) -> Degradation | None:
        """The degradation of one sample; None for a clean one."""
        if rng.random() < self.clean:
            return None
        names = list(KERNELS) if rng.random() < self.kernel else ["cubic"]
        return Degradation(
            first=str(rng.choice(names)),
            second=str(rng.choice(names)),
            again=_Codec.draw(rng) if rng.random() < self.again else None,
            excess=rng.uniform(1, 2),
            blur=_Blur.draw(rng) if rng.random() < self.blur else None,
            noise=_Noise.draw(rng) if rng.random() < self.noise else None,
            codec=_Codec.draw(rng) if rng.random() < self.compress else None,
        )


class Degradation(NamedTuple):
    """The degradations of one sample.

    Attributes:
        first: kernel of the reduction, or of its first part.
        second: kernel of the second part.
        again: compression between the two parts; None makes the reduction one part.
        excess: width of the image between them over that of the LR image, at most the scale.
        blur: of the LR image.
        noise: of the LR image.
        codec: compression of the LR image.
    """

    first: str
    second: str
    again: _Codec | None
    excess: float
    blur: _Blur | None
    noise: _Noise | None
    codec: _Codec | None

    def reduce(self, image: Tensor, spans: tuple[Span, Span], rng: np.random.Generator) -> Tensor:
        """A part of an HR image, reduced and degraded.

        Args:
            image: uint8 (3, H, W); mirrored where the spans go beyond it.
            spans: the rows and columns of the result.
            rng: of the noise.

        Returns:
            float32 (3, rows, columns), whole levels from 0 to 255.
        """
        lr = image.float()
        if self.again is not None:
            sizes = [max(1, round(n * min(self.excess, pitch))) for n, _, pitch in spans]
            for dim, between, (size, origin, pitch) in zip((-2, -1), sizes, spans, strict=True):
                scale = between / (size * pitch)
                lr = self._resized(lr, dim, between, scale, origin, self.first)
            lr = self.again.apply(lr)
            for dim, between, (size, _, _) in zip((-2, -1), sizes, spans, strict=True):
                lr = self._resized(lr, dim, size, size / between, 0.0, self.second)
        else:
            for dim, (size, origin, pitch) in zip((-2, -1), spans, strict=True):
                lr = self._resized(lr, dim, size, 1 / pitch, origin, self.first)
        if self.blur is not None:
            lr = blur(lr, *self.blur)
        if self.noise is not None:
            lr = self.noise.apply(lr, rng)
        return self.codec.apply(lr) if self.codec is not None else nearest_level(lr)

    @staticmethod
    def _resized(
        image: Tensor, dim: int, size: int, scale: float, origin: float, kernel: str
    ) -> Tensor:
        length = image.shape[dim]
        taps = resize_taps(size, scale, length, origin=origin, kernel=KERNELS[kernel])
        return resample(image, dim, *taps)


class _Codec(NamedTuple):
    name: str
    quality: int
    subsampled: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Codec:
        """Four of five are JPEGs, four of five of those with colours of half the resolution."""
        quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
        jpeg, subsampled = rng.random(2) < 0.8
        return cls("jpg" if jpeg else "webp", quality, bool(subsampled))

    def apply(self, image: Tensor) -> Tensor:
        levels = nearest_level(image.clone()).to(torch.uint8)
        return compress(levels, self.name, self.quality, self.subsampled).float()


class _Blur(NamedTuple):
    sigmas: tuple[float, float]
    angle: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Blur:
        """Half of them are the same in all directions."""
        first, second = rng.uniform(0.2, STRONGEST_BLUR, 2)
        return cls((first, first if rng.random() < 0.5 else second), rng.uniform(0, math.pi))


class _Noise(NamedTuple):
    kind: str
    strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Noise:
        """Mostly weak: a strength is the largest one times the 3/2 power of U(0, 1)."""
        kind = str(rng.choice(["colour", "grey", "shot"], p=[0.5, 0.2, 0.3]))
        most = LARGEST_GAIN if kind == "shot" else STRONGEST_NOISE
        return cls(kind, max(most * rng.random() ** 1.5, 0.01))

    def apply(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self.kind == "shot":
            return add_shot_noise(image, self.strength, rng)
        return add_gaussian_noise(image, self.strength, rng, grey=self.kind == "grey")
