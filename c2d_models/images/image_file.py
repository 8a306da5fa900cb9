"""Reading and writing photographs, through libvips.

An image is read once into a NumPy array with everything a viewer needs to show it alike: bit depth,
alpha, ICC profile, metadata. What is written comes in rows (writer.py).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyvips

from ..errors import ImageError
from ..files import remove_leftovers
from .colours import cicp_note, cmyk_to_srgb, is_usable, png_to_srgb, to_samples
from .formats import (
    FORMATS,
    INPUT_SUFFIXES,
    KNOWN_SUFFIXES,
    OUTPUT_SUFFIXES,
    format_of,
    sniff,
)
from .image_data import ImageData
from .loading import Decoded, open_picture, reopen
from .metadata import exif_orientation, read_metadata
from .writer import Writer, reduce_to_8_bit

__all__ = [
    "FORMATS",
    "INPUT_SUFFIXES",
    "KNOWN_SUFFIXES",
    "MAX_PIXELS",
    "OUTPUT_SUFFIXES",
    "ImageData",
    "Writer",
    "cmyk_to_srgb",
    "format_of",
    "read",
    "read_bytes",
    "reduce_to_8_bit",
    "remove_leftovers",
    "write",
]

MAX_PIXELS = 2**28
"""Largest image read, in pixels: a file of a few bytes may claim any size."""

Result = TypeVar("Result")


def read(
    path: str | os.PathLike[str], *, strict: bool = False, max_pixels: int | None = None
) -> ImageData:
    """Read one photograph.

    CMYK and Lab become sRGB, as does a PNG whose gAMA or cHRM say that it is something else; a
    palette becomes RGB; any other profile is kept and the samples are left as they are. Of a file
    with several pages or frames the first is read.

    Args:
        path: the file. Its name may be any bytes.
        strict: refuse a JPEG whose data are damaged or end early; else it is read as far as
            possible, and `notes` say so.
        max_pixels: refuse an image that claims more; MAX_PIXELS by default.

    Raises:
        ImageError: the file is missing, empty, damaged, too large, a camera raw, or not an image
            of a kind that is read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read(str(path), file, strict, max_pixels)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not an image.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from None


def read_bytes(
    data: bytes, name: str, *, strict: bool = False, max_pixels: int | None = None
) -> ImageData:
    """As `read`, of a file in memory; sentences call it `name`."""
    return _read(name, io.BytesIO(data), strict, max_pixels)


def write(path: str | Path, image: ImageData, **options: Any) -> None:
    """Write a picture whole; `options` are those of `Writer`."""
    height, width, _ = image.pixels.shape
    samples = image.pixels
    if image.alpha is not None:
        samples = np.concatenate([samples, image.alpha[..., None]], axis=2)
    with Writer(path, height, width, like=image, **options) as writer:
        writer.write(0, samples if writer.dtype == samples.dtype else reduce_to_8_bit(samples))
        writer.finish()


def _read(name: str, file: BinaryIO, strict: bool, max_pixels: int | None) -> ImageData:
    most = MAX_PIXELS if max_pixels is None else max_pixels
    kind = sniff(name, file)
    try:
        decoded = open_picture(name, kind, file, most)
        pixels, alpha = to_samples(name, decoded)
    except pyvips.Error as error:
        decoded = reopen(name, kind, file, error, strict, most)
        pixels, alpha = _or_damaged(name, lambda: to_samples(name, decoded))
    metadata = read_metadata(kind, file)
    icc = _field(decoded, "icc-profile-data")
    if decoded.colours == 4 or decoded.image.interpretation in ("lab", "labs", "labq"):
        icc = None  # the samples are sRGB now
    elif kind == "png" and icc is None and (converted := png_to_srgb(file, pixels)) is not None:
        pixels = converted
    notes = decoded.notes + cicp_note(metadata.cicp)
    if icc is not None and not is_usable(icc, pixels.shape[2]):
        icc = None
        notes.append("its colour profile is damaged or of another kind, and left out")
    orientation = exif_orientation(metadata.exif) if kind in ("jpg", "png", "webp") else None
    if orientation is None:
        orientation = _field(decoded, "orientation") or 1
    turned = orientation in (5, 6, 7, 8)
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    height, width, _ = pixels.shape
    if alpha is not None:
        alpha = np.ascontiguousarray(_upright(alpha, orientation))
    return ImageData(
        pixels=pixels,
        alpha=alpha,
        icc=icc,
        format=kind,
        lossy=decoded.lossy,
        metadata=metadata.enlarged(height, width, turned),
        notes=notes,
    )


def _or_damaged(name: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except pyvips.Error:
        raise ImageError(f"{name} is truncated or damaged.") from None


def _field(decoded: Decoded, name: str) -> Any:
    return decoded.image.get(name) if decoded.image.get_typeof(name) else None


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8; anything else counts as 1) to (H, W, ...)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
