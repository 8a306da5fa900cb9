"""PIL images as arrays, and back in the same mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UpscaleError
from ..images import image_file

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT = ("L", "LA", "RGB", "RGBA")
"""Modes that are arrays of uint8 as they are."""
CONVERTED = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}
"""Other modes of 8 bits, and what each becomes without transparency."""
_WHITE = (1, 255, 65535)  # what is white in modes I and F, which do not say


def to_array(image: Image) -> tuple[np.ndarray, Callable[[np.ndarray], Image]]:
    """The samples, upright, as `upscale` takes them, and what makes such an image of an array.

    A colour that `info` declares transparent becomes alpha 0. CMYK becomes sRGB as in a file. Modes
    I and F do not say what is white: the least of 1 (F alone), 255 and 65535 that no sample exceeds
    is taken.

    Raises:
        UpscaleError: another mode, or samples below 0 or above 65535 or NaN.
    """
    from PIL import ImageOps
    from PIL.Image import fromarray

    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    transparent = image.info.get("transparency")
    if image.mode in ("I", "F"):
        array, restore = _numbers(image)
    elif image.mode.startswith("I;16"):
        array, restore = np.asarray(image).astype(np.uint16), fromarray
        if transparent is not None:  # there is no mode for 16 bits and alpha
            alpha = np.where(array == transparent, 0, 255)
            array = np.stack([image_file.reduce_to_8_bit(array), alpha.astype(np.uint8)], axis=2)
    elif image.mode == "CMYK":
        array, restore = image_file.cmyk_to_srgb(np.asarray(image), profile), fromarray
        profile = None
    elif image.mode in KEPT or image.mode in CONVERTED:
        mode = CONVERTED.get(image.mode, image.mode)
        if transparent is not None and mode in ("L", "RGB"):
            mode = {"L": "LA", "RGB": "RGBA"}[mode]
        array, restore = np.asarray(image.convert(mode)), fromarray
    else:
        raise UpscaleError(f"image has the mode {image.mode}; convert it to RGB first.")

    def back(samples: np.ndarray) -> Image:
        result = restore(samples)
        if profile is not None:
            result.info["icc_profile"] = profile
        return result

    return array, back


def _numbers(image: Image) -> tuple[np.ndarray, Callable[[np.ndarray], Image]]:
    """Modes I (int32) and F (float32): floats in [0, 1] on the way, the same range afterwards."""
    from PIL.Image import fromarray

    values = np.asarray(image)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    whites = [white for white in _WHITE if high <= white and (white > 1 or image.mode == "F")]
    if not whites or not low >= 0:
        raise UpscaleError(
            f"image has the mode {image.mode} and samples from {low:g} to {high:g}; those of a "
            "picture are from 0 to 65535."
        )
    white = whites[0]

    def back(samples: np.ndarray) -> Image:
        large = samples * np.float32(white)
        return fromarray(np.rint(large).astype(np.int32) if image.mode == "I" else large)

    return values.astype(np.float32) / np.float32(white), back
