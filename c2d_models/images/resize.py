"""MATLAB's bicubic `imresize`, from one table of taps.

Super-resolution scores are only comparable when the low-resolution (LR) images are made the way
everyone makes them: MATLAB's antialiased bicubic, rounded to 8 bit. Here one table of taps
(`resize_taps`) says which high-resolution (HR) pixels make an LR pixel and with what weight, at
any real scale and from any origin; other kernels serve those who imitate other programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981, equation 4), support [-2, 2]."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))


def box(x: np.ndarray) -> np.ndarray:
    """1 in [-1/2, 1/2): the mean over an area."""
    return ((x >= -0.5) & (x < 0.5)).astype(np.float64)


def triangle(x: np.ndarray) -> np.ndarray:
    """Linear interpolation, support [-1, 1]."""
    return np.maximum(1.0 - np.abs(x), 0.0)


def lanczos3(x: np.ndarray) -> np.ndarray:
    """sinc(x) sinc(x / 3), support [-3, 3]."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


class Kernel(NamedTuple):
    """A resampling kernel: its weight at a distance in pixels, and the distance where it ends."""

    weight: Callable[[np.ndarray], np.ndarray]
    support: float


KERNELS = {
    "box": Kernel(box, 0.5),
    "triangle": Kernel(triangle, 1.0),
    "cubic": Kernel(cubic, 2.0),
    "lanczos3": Kernel(lanczos3, 3.0),
}


def resize_taps(
    count: int,
    scale: float,
    length: int,
    *,
    origin: float = 0.0,
    boundary: str = "symmetric",
    kernel: Kernel = KERNELS["cubic"],
) -> tuple[np.ndarray, np.ndarray]:
    """The input pixels and weights of `count` output pixels along one axis.

    Output pixel i has its centre at `origin + (i + 1/2) / scale - 1/2` in input pixels. Below
    scale 1 the kernel is stretched by 1 / scale (antialiasing); weights of a pixel sum to 1.

    Args:
        count: number of output pixels.
        scale: output pixels per input pixel, any real number > 0.
        length: number of input pixels; positions outside are folded back by `boundary`.
        origin: input position of the output's left edge, in pixels.
        boundary: "symmetric" (mirror with the edge repeated) or "replicate" (repeat the edge).
        kernel: bicubic by default.

    Returns:
        indices int64 (count, taps) in [0, length) and weights float64 (count, taps).
    """
    stretch = max(1.0, 1.0 / scale)
    centre = origin + (np.arange(count) + 0.5) / scale - 0.5
    reach = kernel.support * stretch
    first = np.floor(centre - reach).astype(np.int64)
    indices = first[:, None] + np.arange(math.ceil(2.0 * reach) + 2)
    weights = kernel.weight((centre[:, None] - indices) / stretch)
    used = np.flatnonzero(np.any(weights != 0.0, axis=0))
    indices, weights = indices[:, used], weights[:, used]
    weights = weights / weights.sum(axis=1, keepdims=True)
    if boundary == "symmetric":
        indices = indices % (2 * length)
        indices = np.minimum(indices, 2 * length - 1 - indices)
    elif boundary == "replicate":
        indices = indices.clip(0, length - 1)
    else:
        raise ArgumentError(
            f"boundary is {boundary!r}; give 'symmetric' (today's MATLAB) or 'replicate' "
            "(the old MATLAB that made the Set5 and Set14 files)"
        )
    return indices, weights


def resample(image: Tensor, dim: int, indices: np.ndarray, weights: np.ndarray) -> Tensor:
    """Weighted sum of a floating point `image`'s slices along `dim`, for taps of `resize_taps`.

    At most 4/scale + 2 multiply-adds per value, where a dense matrix would spend the whole length
    of the axis.
    """
    shape = [1] * image.ndim
    shape[dim] = -1
    taps = torch.from_numpy(np.ascontiguousarray(indices.T)).to(image.device)
    factors = torch.from_numpy(np.ascontiguousarray(weights.T)).to(image)
    result = image.index_select(dim, taps[0]) * factors[0].view(shape)
    for tap, factor in zip(taps[1:], factors[1:], strict=True):
        result = torch.addcmul(result, image.index_select(dim, tap), factor.view(shape))
    return result


def imresize(
    image: Tensor,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    *,
    boundary: str = "symmetric",
) -> Tensor:
    """MATLAB's `imresize(image, scale)` or `imresize(image, size)`, bicubic with antialiasing.

    Args:
        image: (..., H, W), floating point or uint8.
        scale: output size over input size, any real number > 0 (1/4 makes a quarter). The result
            is ceil(H * scale) x ceil(W * scale); the mapping uses `scale` itself, as MATLAB's.
        size: (H_out, W_out) instead of `scale`; each axis then has the scale H_out / H, W_out / W.
        boundary: "symmetric" as MATLAB does today, or "replicate" as the old MATLAB that made the
            LR files of Set5 and Set14.

    Returns:
        (..., H_out, W_out) in image's dtype. Floating point is neither rounded nor clamped. uint8
        is rounded after *each* axis, as MATLAB does: this reproduces the LR files of Set5 and
        Set14 to the last bit ("replicate"), which rounding once at the end does for 85-90 % of
        the values only.

    Raises:
        TypeError: another dtype. ArgumentError: not exactly one of scale and size,
        or one that is not positive, or an unknown boundary.
    """
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise TypeError(f"image is {image.dtype}; give a floating point or uint8 tensor")
    height, width = image.shape[-2:]
    if size is not None and scale is None:
        if min(size) < 1:
            raise ArgumentError(f"size is {tuple(size)}; give a height and a width of at least 1")
        counts, scales = size, (size[0] / height, size[1] / width)
    elif scale is None or size is not None:
        raise ArgumentError("give imresize either scale or size")
    else:
        if not (scale > 0 and math.isfinite(scale)):
            raise ArgumentError(f"scale is {scale}; give a number above 0, e.g. 0.25 for a quarter")
        scales = (scale, scale)
        # 1/3 * 255 may come out as 85.00000000000001: that is 85 pixels, not 86.
        counts = (
            math.ceil(height * scale - 1e-9 * height),
            math.ceil(width * scale - 1e-9 * width),
        )
    values = image if image.is_floating_point() else image.double()
    for dim, count, factor in sorted(
        zip((-2, -1), counts, scales, strict=True), key=lambda a: a[2]
    ):
        length = image.shape[dim]
        if count == length and factor == 1.0:
            continue
        values = resample(values, dim, *resize_taps(count, factor, length, boundary=boundary))
        if image.dtype == torch.uint8:
            values = nearest_level(values)
    return values.to(image.dtype)


def lr_pair(hr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """An LR image and the part of `hr` that it covers, for any real scale >= 1.

    LR is floor(H / scale) x floor(W / scale); HR is cropped (top left) to round(LR * scale), and
    each axis is reduced by exactly its own ratio, so that the two grids cover the same area. Both
    are (..., H, W) of hr's dtype (uint8 for the rounding of a file).
    """
    if not 1 <= scale <= min(hr.shape[-2:]):
        raise ArgumentError(
            f"scale is {scale} for an image of {hr.shape[-1]}x{hr.shape[-2]}; "
            "give a number from 1 to the image's shorter side"
        )
    lr_size = [math.floor(n / scale + 1e-9) for n in hr.shape[-2:]]
    height, width = (round(n * scale) for n in lr_size)
    hr = hr[..., :height, :width]
    return imresize(hr, size=(lr_size[0], lr_size[1])), hr


def nearest_level(values: Tensor) -> Tensor:
    """Values on the scale of 8 bit, rounded half up and clamped, in place."""
    return (values + 0.5).floor_().clamp_(0.0, 255.0)
