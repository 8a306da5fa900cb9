"""Images for training and evaluation: MATLAB's bicubic `imresize`, image folders, random batches.

Super-resolution scores are only comparable when the low-resolution (LR) images are made the way
everyone makes them: MATLAB's antialiased bicubic, rounded to 8 bit. Here one table of taps
(`bicubic_taps`) says which high-resolution (HR) pixels make an LR pixel and with what weight, at
any real scale and from any origin. `imresize` applies it to whole images; a training patch
applies it at its place inside the photograph, so that the patch's borders are made of the
photograph's own pixels and its LR grid lies exactly where its HR coordinates say.

A batch is a pure function of (seed, step, sample index): any step can be made again, in any
process, without the steps before it.
"""

from __future__ import annotations

import math
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from c2d_models import images


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
            values = _nearest_level(values)
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
    return _nearest_level(image * 255.0) / 255.0


def _nearest_level(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0.0, 255.0)


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


def read_all(files: Iterable[Path]) -> tuple[list[Path], list[Tensor], list[str]]:
    """The files that can be read, their images as `read_rgb` gives them, why others cannot."""
    good, pictures, left_out = [], [], []
    for file in files:
        try:
            pictures.append(read_rgb(file))
            good.append(file)
        except images.ImageError as error:
            left_out.append(str(error))
    return good, pictures, left_out


class Batches(ABC):
    """Random LR/HR patches of photographs that are kept in memory as uint8.

    Args:
        source: a folder, several folders, or image files (see `list_images`).
        patch: side of the LR patch in pixels.
        batch: samples a step (of this process).
        seed: of every random choice.

    An image that cannot be read is left out; `left_out` holds a sentence about each.

    Raises:
        DataError: no images that can be read, or one smaller than the smallest HR patch.
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        patch: int,
        batch: int,
        seed: int,
        smallest: int,
    ) -> None:
        for name, value in (("patch", patch), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        self.patch, self.batch_size, self.seed = patch, batch, seed
        self.files, self.images, self.left_out = read_all(list_images(source))
        if not self.files:
            raise DataError(
                f"none of {len(self.left_out)} images can be read; the first: {self.left_out[0]}"
            )
        for file, image in zip(self.files, self.images, strict=True):
            if min(image.shape[-2:]) < smallest:
                raise DataError(
                    f"{file} is {image.shape[-1]}x{image.shape[-2]}; patches of {patch} pixels "
                    f"need at least {smallest}x{smallest}: remove it or take a smaller patch"
                )

    @abstractmethod
    def sample(self, step: int, index: int) -> dict[str, Tensor]:
        """Sample number `index` of step `step`: a batch's entries without their first axis."""

    def batch(self, step: int, rank: int = 0) -> dict[str, Tensor]:
        """The batch of step `step`; process `rank` of several takes samples of its own."""
        first = rank * self.batch_size
        samples = [self.sample(step, first + i) for i in range(self.batch_size)]
        return {key: torch.stack([each[key] for each in samples]) for key in samples[0]}

    def _draw(self, step: int, index: int) -> tuple[np.random.Generator, Tensor]:
        """The sample's own random generator and its photograph, uint8 (3, H, W)."""
        rng = np.random.default_rng((self.seed, step, index))
        return rng, self.images[rng.integers(len(self.images))]

    def _patches(self, rng: np.random.Generator, image: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """A random HR patch (uint8) and its LR patch (float32), turned and flipped alike.

        LR pixels near the patch's edge see the photograph beyond it; only the photograph's own
        edge is mirrored. Flipping afterwards is exact, for the kernel is even.
        """
        spans, taps = [], []
        for length in image.shape[-2:]:
            start = int(rng.integers(length - side + 1))
            indices, weights = bicubic_taps(self.patch, self.patch / side, length, origin=start)
            low = indices.min()
            spans.append((start, slice(low, indices.max() + 1)))
            taps.append((indices - low, weights))
        (top, rows), (left, columns) = spans
        # As imresize does for uint8, but in float32: exact for scales 2 and 4, else within its
        # rounding; a third of the time.
        lr = _nearest_level(resample(image[:, rows, columns].float(), -2, *taps[0]))
        lr = _nearest_level(resample(lr, -1, *taps[1])).div_(255.0)
        hr = image[:, top : top + side, left : left + side]
        turn = int(rng.integers(8))
        return orient(hr, turn), orient(lr, turn)


def orient(image: Tensor, turn: int) -> Tensor:
    """One of the 8 symmetries of the square: transpose (turn & 1), flip rows (2), columns (4)."""
    if turn & 1:
        image = image.transpose(-2, -1)
    flips = [dim for bit, dim in ((2, -2), (4, -1)) if turn & bit]
    return image.flip(flips) if flips else image


class ContinuousBatches(Batches):
    """Batches at continuous scales: LR patches and HR pixels at random positions within them.

    Each sample draws s ~ U(scale) and takes an HR patch of h = round(patch * s) pixels a side,
    so that its true scale is h / patch on both axes; it is reduced to patch x patch, and `queries`
    different pixels of it are the targets (LIIF, 2012.09161, section 3). A photograph smaller
    than h gives its largest patch.

    `batch(step)` returns float32 tensors
        lr (B, 3, patch, patch) in [0, 1], on the 256 levels of 8 bit;
        coords (B, Q, 2): (y, x) of the target pixels' centres, the patch spanning [-1, 1];
        cell (B, 2) = (2/h, 2/h), a target pixel's size in those units;
        target (B, Q, 3) in [0, 1].
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        patch: int = 64,
        queries: int = 4096,
        scale: tuple[float, float] = (1.0, 4.0),
        batch: int = 16,
        seed: int = 0,
    ) -> None:
        if not 1.0 <= scale[0] <= scale[1]:
            raise ValueError(
                f"scale is {scale}; give (lowest, highest) with 1 <= lowest <= highest"
            )
        smallest = round(patch * scale[0])
        if not 1 <= queries <= smallest**2:
            raise ValueError(
                f"queries is {queries}; give 1 to {smallest**2}, the pixels of the smallest patch"
            )
        super().__init__(source, patch=patch, batch=batch, seed=seed, smallest=smallest)
        self.queries, self.scale = queries, scale

    def sample(self, step: int, index: int) -> dict[str, Tensor]:
        rng, image = self._draw(step, index)
        side = min(round(self.patch * rng.uniform(*self.scale)), *image.shape[-2:])
        hr, lr = self._patches(rng, image, side)
        chosen = rng.choice(side * side, self.queries, replace=False, shuffle=False)
        y, x = (torch.from_numpy(axis) for axis in np.divmod(chosen, side))
        return {
            "lr": lr,
            "coords": (torch.stack((y, x), -1).double() * 2 + 1).div_(side).sub_(1).float(),
            "cell": torch.full((2,), 2.0 / side),
            "target": hr[:, y, x].T.float().div_(255.0),
        }


class DiscreteBatches(Batches):
    """Batches at one integer scale: whole LR and HR patches.

    `batch(step)` returns float32 tensors lr (B, 3, patch, patch), on the 256 levels of 8 bit, and
    hr (B, 3, scale * patch, scale * patch), both in [0, 1].
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        scale: int = 4,
        patch: int = 64,
        batch: int = 16,
        seed: int = 0,
    ) -> None:
        if scale < 1 or scale != int(scale):
            raise ValueError(f"scale is {scale}; give a whole number of at least 1")
        super().__init__(source, patch=patch, batch=batch, seed=seed, smallest=patch * scale)
        self.scale = scale

    def sample(self, step: int, index: int) -> dict[str, Tensor]:
        rng, image = self._draw(step, index)
        hr, lr = self._patches(rng, image, self.patch * self.scale)
        return {"lr": lr, "hr": hr.float().div_(255.0)}
