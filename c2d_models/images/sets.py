"""Image sets: folders of files, LR and HR in pairs, what trains and what is held out."""

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

from ..errors import ArgumentError, DataError, ImageError
from . import image_file
from .resize import lr_pair

_LARGEST_CROP = 12  # sets are often cropped to multiples of 12 before they are reduced


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
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in image_file.INPUT_SUFFIXES
        and file.is_file()
        and file.name[0] != "."
    )
    if not found:
        raise DataError(
            f"image folder {path} holds no image; it needs files ending in "
            + ", ".join(sorted(image_file.INPUT_SUFFIXES))
        )
    return found


def split(files: Sequence[Path], every: int = 20) -> tuple[list[Path], list[Path]]:
    """Divide image files into (training, held out): about one photograph in `every` is held out.

    A file's side depends on its name alone, so it stays where it is when other files come or go.
    Names that differ only in a last `_<number>` are crops of one photograph and stay together.
    With at least two photographs neither side is empty.
    """
    if every < 2:
        raise ArgumentError(f"every is {every}; give at least 2, or nothing is left to train on")

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
    pixels = image_file.read(path).pixels
    if pixels.dtype == np.uint16:
        pixels = image_file.reduce_to_8_bit(pixels)
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
        except ImageError as error:
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
        except ArgumentError as error:
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
