"""Degradations that cameras and web sites leave in photographs: blur, noise and lossy compression.

All work on images (3, H, W) in levels from 0 to 255; those that draw take a generator.
"""

from __future__ import annotations

import math

import numpy as np
import pyvips
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError

CODECS = ("jpg", "webp")
_COVERED = 3.0  # standard deviations of a Gaussian


def gaussian_kernel(sigmas: tuple[float, float], angle: float) -> Tensor:
    """An anisotropic Gaussian, sampled at pixel centres and normalised to a sum of 1.

    Args:
        sigmas: standard deviations in pixels along the kernel's own two axes.
        angle: radians from the image's x axis to the first of them.

    Returns:
        float32 (K, K), K odd and at least 3 standard deviations to each side.
    """
    radius = max(1, math.ceil(_COVERED * max(sigmas)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigmas[0]
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigmas[1]
    weights = np.exp(-0.5 * (along**2 + across**2))
    return torch.from_numpy(weights / weights.sum()).float()


def blur(image: Tensor, sigmas: tuple[float, float], angle: float = 0.0) -> Tensor:
    """Convolve a float32 image with `gaussian_kernel`; its edge is repeated outside."""
    kernel = gaussian_kernel(sigmas, angle)
    reach = len(kernel) // 2
    padded = F.pad(image[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(padded, kernel[None, None])[:, 0]


def add_gaussian_noise(
    image: Tensor, sigma: float, rng: np.random.Generator, grey: bool = False
) -> Tensor:
    """Add independent Gaussian noise of `sigma` levels; the same to all channels if `grey`."""
    shape = (1 if grey else len(image), *image.shape[1:])
    return image + sigma * torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def add_shot_noise(image: Tensor, gain: float, rng: np.random.Generator) -> Tensor:
    """Replace each level by `gain` times a Poisson count, whose variance is gain * level."""
    counts = rng.poisson(image.clamp(min=0).double().numpy() / gain)
    return torch.from_numpy(counts * gain).to(image)


def compress(image: Tensor, codec: str, quality: int, subsampled: bool = True) -> Tensor:
    """An image as a lossy file gives it back.

    Args:
        image: uint8 (3, H, W).
        codec: "jpg" or "webp".
        quality: 1 to 100, of libvips' encoders.
        subsampled: a JPEG's colours at half the resolution (4:2:0); WebP's always are.

    Returns:
        uint8 (3, H, W).

    Raises:
        ArgumentError: an unknown codec.
    """
    if codec not in CODECS:
        raise ArgumentError(f"codec is {codec!r}; give {' or '.join(map(repr, CODECS))}")
    picture = pyvips.Image.new_from_array(image.permute(1, 2, 0).contiguous().numpy())
    picture = picture.copy(interpretation="srgb")
    if codec == "jpg":
        mode = "on" if subsampled else "off"
        data = picture.jpegsave_buffer(Q=quality, subsample_mode=mode)
        decoded = pyvips.Image.jpegload_buffer(data)
    else:
        decoded = pyvips.Image.webpload_buffer(picture.webpsave_buffer(Q=quality))
    return torch.from_numpy(decoded.numpy()).permute(2, 0, 1)
