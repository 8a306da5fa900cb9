"""PSNR and SSIM on luma, by the rule of the super-resolution papers.

Images are rounded to 8 bit, cropped by a border (the scale factor, for the pixels near the edge
are made of invented neighbours), turned to the luma of BT.601 *studio* range (16 to 235), which is
not rounded, and compared in float64 with 255 as the peak. On whole-number scales this is the rule
behind the tables of SwinIR, SRFormer, HiT-SR and MambaIRv2. Papers on continuous scales count by
LIIF's, `psnr_liif`; `RULES` has both by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError

_WINDOW, _SIGMA = 11, 1.5
_STRIP = 32  # rows of the SSIM map at a time, whose sums stay in a core's cache


def to_y(image: Tensor) -> Tensor:
    """BT.601 studio luma, Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 for R, G, B in 0..255.

    Args:
        image: (..., 3, H, W), uint8 or floating point in [0, 1]; the latter is rounded to the 256
            levels of 8 bit first and clamped.

    Returns:
        (..., H, W) float64, 16 for black to 235 for white.

    Raises:
        ArgumentError: not three channels. TypeError: another dtype.
    """
    red, green, blue = _levels(image).round().unbind(-3)
    return 16.0 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255.0


def psnr_y(sr: Tensor, hr: Tensor, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared difference of luma).

    Args:
        sr, hr: images of the same size, (3, H, W) or (B, 3, H, W) as `to_y` takes them; the mean
            is over the whole batch.
        border: pixels left out at each side.

    Returns:
        dB; infinity where the images agree, NaN where one is not a number.

    Raises:
        ArgumentError: sizes that differ, or a border that leaves nothing.
    """
    return _psnr(*_luma_pair(sr, hr, border, smallest=1))


def psnr_liif(sr: Tensor, hr: Tensor, border: int = 0) -> float:
    """PSNR in dB as LIIF's evaluation of benchmarks counts it (Chen et al. 2021, arXiv 2012.09161).

    It differs from `psnr_y`, the papers' rule, in that

    - images are clamped to [0, 1] but not rounded to 8 bit: a network is compared as it computes;
    - the weights of luma are (65.738, 129.057, 25.064) / 256 instead of (65.481, 128.553, 24.966)
      / 255: BT.601 in other words, the same to 4e-6.

    The border is the same, scale pixels; at a scale that is not whole, of which LIIF reports none,
    ceil(scale). LIIF has no rule for SSIM.

    Args, returns and errors as `psnr_y`.
    """
    return _psnr(*_luma_pair(sr, hr, border, smallest=1, luma=_luma_of_liif))


def ssim_y(sr: Tensor, hr: Tensor, border: int = 0) -> float:
    """Structural similarity of luma (Wang et al. 2004, equation 13), at most 1.

    Means, variances and covariance are weighted by an 11x11 Gaussian of sigma 1.5 that sums to 1
    (population, not sample, variances); the mean is over the positions where it fits.

    Args and errors as `psnr_y`; at least 11x11 pixels must be left inside the border.
    """
    x, y = _luma_pair(sr, hr, border, smallest=_WINDOW)
    overlap = _WINDOW - 1
    height, width = (side - overlap for side in x.shape[-2:])
    total = 0.0
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP + overlap)
        total += _similarity(x[:, rows], y[:, rows]).sum().item()
    return total / (x.shape[0] * height * width)


RULES: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "papers": psnr_y,
    "liif": psnr_liif,
}
"""PSNR of luma, (sr, hr, border) -> dB, by the name of its rule."""


def _levels(image: Tensor) -> Tensor:
    """(..., 3, H, W) as `to_y` takes it, in float64 from 0 to 255, not rounded."""
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ArgumentError(f"image has shape {tuple(image.shape)}; give (..., 3, H, W)")
    if image.is_floating_point():
        return (image.double() * 255.0).clamp(0.0, 255.0)
    if image.dtype == torch.uint8:
        return image.double()
    raise TypeError(f"image is {image.dtype}; give uint8 or floating point in [0, 1]")


def _luma_of_liif(image: Tensor) -> Tensor:
    """Luma of 0 to 219, without the offset of 16 that a difference does not see."""
    red, green, blue = _levels(image).unbind(-3)
    return (65.738 * red + 129.057 * green + 25.064 * blue) / 256.0


def _psnr(sr_y: Tensor, hr_y: Tensor) -> float:
    error = (sr_y - hr_y).square().mean().item()
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def _luma_pair(
    sr: Tensor,
    hr: Tensor,
    border: int,
    smallest: int,
    luma: Callable[[Tensor], Tensor] = to_y,
) -> tuple[Tensor, Tensor]:
    """Luma of both images without the border, (B, h, w)."""
    if sr.shape != hr.shape:
        raise ArgumentError(
            f"sr has shape {tuple(sr.shape)} and hr {tuple(hr.shape)}; give images of one size"
        )
    height, width = (n - 2 * border for n in sr.shape[-2:])
    if border < 0 or min(height, width) < smallest:
        raise ArgumentError(
            f"border is {border} for an image of {sr.shape[-1]}x{sr.shape[-2]}; "
            f"at least {smallest}x{smallest} pixels must be left inside it"
        )
    rows, columns = slice(border, border + height), slice(border, border + width)
    y_sr, y_hr = (luma(image)[..., rows, columns].reshape(-1, height, width) for image in (sr, hr))
    return y_sr, y_hr


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """The SSIM map of luma, (B, h, w) -> (B, h-10, w-10)."""
    blurred = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, square_x, square_y, product = blurred
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2.0 * covariance + c2) / (variances + c2)


def _blur(images: Tensor) -> Tensor:
    """Valid convolution with the separable Gaussian window; (..., h, w) -> (..., h-10, w-10)."""
    places = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-(places**2) / (2.0 * _SIGMA**2))
    weights = (window / window.sum()).tolist()
    for axis in (-2, -1):
        images = _weighted_sum(images, axis, weights)
    return images


def _weighted_sum(images: Tensor, axis: int, weights: Sequence[float]) -> Tensor:
    """Along one axis; the weights are symmetric. Shifted sums: a float64 convolution is slower."""
    length, middle = images.shape[axis] - len(weights) + 1, len(weights) // 2
    total = images.narrow(axis, middle, length) * weights[middle]
    for place in range(middle):
        pair = images.narrow(axis, place, length)
        pair = pair + images.narrow(axis, len(weights) - 1 - place, length)
        total.add_(pair, alpha=weights[place])
    return total
