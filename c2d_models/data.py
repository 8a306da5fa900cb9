"""Images for training and evaluation: MATLAB's bicubic `imresize`, folders, LR and HR in pairs.

Super-resolution scores are only comparable when the low-resolution (LR) images are made the way
everyone makes them: MATLAB's antialiased bicubic, rounded to 8 bit. Here one table of taps
(`bicubic_taps`) says which high-resolution (HR) pixels make an LR pixel and with what weight, at
any real scale and from any origin. `imresize` applies it to whole images; a training patch
applies it at its place inside the photograph, so that the patch's borders are made of the
photograph's own pixels and its LR grid lies exactly where its HR coordinates say.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2d_models import images

_LARGEST_CROP = 12  # sets are often cropped to multiples of 12 before they are reduced


class DataError(ValueError):
    """Images that are missing or do not fit together; one sentence."""


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981, equation 4), support [-2, 2]."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))


def bicubic_taps(
    count: int,
    scale: float,
    length: int,
    *,
    origin: float = 0.0,
    boundary: str = "symmetric",
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

    Returns:
        indices int64 (count, taps) in [0, length) and weights float64 (count, taps).
    """
    stretch = max(1.0, 1.0 / scale)
    centre = origin + (np.arange(count) + 0.5) / scale - 0.5
    first = np.floor(centre - 2.0 * stretch).astype(np.int64)
    indices = first[:, None] + np.arange(math.ceil(4.0 * stretch) + 2)
    weights = cubic((centre[:, None] - indices) / stretch)
    used = np.flatnonzero(np.any(weights != 0.0, axis=0))
    indices, weights = indices[:, used], weights[:, used]
    weights = weights / weights.sum(axis=1, keepdims=True)
    if boundary == "symmetric":
        indices = indices % (2 * length)
        indices = np.minimum(indices, 2 * length - 1 - indices)
    elif boundary == "replicate":
        indices = indices.clip(0, length - 1)
    else:
        raise ValueError(
            f"boundary is {boundary!r}; give 'symmetric' (today's MATLAB) or 'replicate' "
            "(the old MATLAB that made the Set5 and Set14 files)"
        )
    return indices, weights


def resample(image: Tensor, dim: int, indices: np.ndarray, weights: np.ndarray) -> Tensor:
    """Weighted sum of a floating point `image`'s slices along `dim`, for taps of `bicubic_taps`.

    At most 4/scale + 2 multiply-adds a value, where a dense matrix would spend the whole length of
    the axis.
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
        TypeError: another dtype. ValueError: not exactly one of scale and size,
        or one that is not positive, or an unknown boundary.
    """
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise TypeError(f"image is {image.dtype}; give a floating point or uint8 tensor")
    if (scale is None) == (size is None):
        raise ValueError("give imresize either scale or size")
    height, width = image.shape[-2:]
    if size is not None:
        if min(size) < 1:
            raise ValueError(f"size is {tuple(size)}; give a height and a width of at least 1")
        scales = (size[0] / height, size[1] / width)
    else:
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale is {scale}; give a number above 0, e.g. 0.25 for a quarter")
        scales = (scale, scale)
        # 1/3 * 255 may come out as 85.00000000000001: that is 85 pixels, not 86.
        size = tuple(math.ceil(n * scale - 1e-9 * n) for n in (height, width))
    values = image if image.is_floating_point() else image.double()
    for dim, count, factor in sorted(zip((-2, -1), size, scales, strict=True), key=lambda a: a[2]):
        length = image.shape[dim]
        if count == length and factor == 1.0:
            continue
        values = resample(values, dim, *bicubic_taps(count, factor, length, boundary=boundary))
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
        raise ValueError(
            f"scale is {scale} for an image of {hr.shape[-1]}x{hr.shape[-2]}; "
            "give a number from 1 to the image's shorter side"
        )
    lr_size = [math.floor(n / scale + 1e-9) for n in hr.shape[-2:]]
    height, width = (round(n * scale) for n in lr_size)
    hr = hr[..., :height, :width]
    return imresize(hr, size=(lr_size[0], lr_size[1])), hr


def quantise(image: Tensor) -> Tensor:
    """Floating values in [0, 1] put on the 256 levels of an 8-bit file: rounded and clamped."""
    return nearest_level(image * 255.0) / 255.0


def nearest_level(values: Tensor) -> Tensor:
    """Values on the scale of 8 bit, rounded half up and clamped, in place."""
    return (values + 0.5).floor_().clamp_(0.0, 255.0)


def orient(image: Tensor, turn: int) -> Tensor:
    """One of the 8 symmetries of the square: transpose (turn & 1), flip rows (2), columns (4)."""
    if turn & 1:
        image = image.transpose(-2, -1)
    flips = [dim for bit, dim in ((2, -2), (4, -1)) if turn & bit]
    return image.flip(flips) if flips else image


def list_images(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image files of a folder (with its subfolders), of several folders, or files as given.

    Returns paths sorted within each folder. Raises DataError when a path does not exist or holds
    no image.
    """
    if not isinstance(source, (str, Path)):
        return [file for each in source for file in list_images(each)]
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"image folder {path} does not exist; give a folder of images")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in images.INPUT_SUFFIXES and file.is_file() and file.name[0] != "."
    )
    if not files:
        raise DataError(
            f"image folder {path} holds no image; it needs files ending in "
            + ", ".join(sorted(images.INPUT_SUFFIXES))
        )
    return files


def split(files: Sequence[Path], every: int = 20) -> tuple[list[Path], list[Path]]:
    """Divide image files into (training, held out): about one photograph in `every` is held out.

    A file's side depends on its name alone, so it stays where it is when other files come or go.
    Names that differ only in a last `_<number>` are crops of one photograph and stay together.
    With at least two photographs neither side is empty.
    """
    if every < 2:
        raise ValueError(f"every is {every}; give at least 2, or nothing is left to train on")

    def draw(file: Path) -> tuple[int, str]:
        photograph = re.sub(r"_\d+$", "", Path(file).stem)
        return zlib.crc32(photograph.encode()), photograph

    draws = {draw(file) for file in files}
    held_out = {number for number in draws if number[0] % every == 0}
    if not held_out and len(draws) > 1:
        held_out = {min(draws)}
    if held_out == draws:
        held_out = set(sorted(held_out)[1:])
    return (
        [file for file in files if draw(file) not in held_out],
        [file for file in files if draw(file) in held_out],
    )


def read_rgb(path: str | Path) -> Tensor:
    """Read an image file as uint8 (3, H, W); grey is repeated, alpha dropped, 16 bit rounded."""
    pixels = images.read(path).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def read_all(
    files: Iterable[Path], read: Callable[[Path], Any] = read_rgb
) -> tuple[list[Path], list[Any], list[str]]:
    """The files that can be read, what `read` makes of them, and why others cannot."""
    good, pictures, left_out = [], [], []
    for file in files:
        try:
            pictures.append(read(file))
            good.append(file)
        except images.ImageError as error:
            left_out.append(str(error))
    return good, pictures, left_out


def pair_files(
    hr_folder: str | Path | Sequence[Path], lr_folder: str | Path | None, scale: float
) -> tuple[list[Path], list[Path | None], str]:
    """HR files, the LR file of each (all None where the set has none), and the set's name."""
    dataset, beside = "images", None
    if isinstance(hr_folder, (str, Path)):
        folder = Path(hr_folder)
        if folder.name != "HR" and (folder / "HR").is_dir():
            folder = folder / "HR"
        dataset, hr_folder = folder.resolve().name, folder
        if dataset == "HR":
            dataset, beside = folder.resolve().parent.name, folder.parent / "LR_bicubic"
    hr_files = list_images(hr_folder)
    if lr_folder is not None and not Path(lr_folder).is_dir():
        raise DataError(f"image folder {lr_folder} does not exist; give the folder of LR images")
    root = Path(lr_folder) if lr_folder is not None else beside
    if root is None or not root.is_dir():
        return hr_files, [None] * len(hr_files), dataset
    where = next((root / s for s in (f"X{scale:g}", f"x{scale:g}") if (root / s).is_dir()), root)
    found = [
        next((where / n for n in _lr_names(hr, scale) if (where / n).is_file()), None)
        for hr in hr_files
    ]
    missing = [hr for hr, lr in zip(hr_files, found, strict=True) if lr is None]
    if missing and (lr_folder is not None or len(missing) < len(hr_files)):
        raise DataError(
            f"{where} holds no {_lr_names(missing[0], scale)[0]}, the LR file of {missing[0]}; "
            "give LR files for all images of a set or for none"
        )
    return hr_files, found, dataset


def _lr_names(hr_file: Path, scale: float) -> tuple[str, ...]:
    return (f"{hr_file.stem}x{scale:g}.png", f"{hr_file.stem}.png")


def read_pair(hr_file: Path, lr_file: Path | None, scale: float) -> tuple[Tensor, Tensor]:
    """LR and the part of HR that it covers, uint8 (3, H, W)."""
    hr = read_rgb(hr_file)
    if lr_file is None:
        try:
            return lr_pair(hr, scale)
        except ValueError as error:
            raise DataError(f"{hr_file} cannot be reduced: {error}") from error
    lr = read_rgb(lr_file)
    height, width = (round(n * scale) for n in lr.shape[-2:])
    spare = (hr.shape[-2] - height, hr.shape[-1] - width)
    if min(spare) < 0 or max(spare) >= max(_LARGEST_CROP, math.ceil(scale)):
        raise DataError(
            f"{lr_file} is {lr.shape[-1]}x{lr.shape[-2]} and {hr_file} {hr.shape[-1]}x"
            f"{hr.shape[-2]}; at scale {scale:g} they do not belong together"
        )
    return lr, hr[..., :height, :width]
