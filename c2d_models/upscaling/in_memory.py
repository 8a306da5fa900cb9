"""Photographs made larger in memory: arrays, files and PIL images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from ..errors import UpscaleError
from ..images import image_file
from ..networks.network import Network
from . import pil_images
from .target import Target
from .upscaler import Progress, Upscaler

if TYPE_CHECKING:
    from PIL.Image import Image

OVERSHOOT = 0.5
"""How far floats may lie outside [0, 1], as those of a sharpened image do; they are clipped."""


@overload
def upscale(
    image: np.ndarray | str | os.PathLike[str],
    scale: float | None = None,
    *,
    size: Sequence[int] | None = None,
    model: str | Path | Network | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    tile: int | str | None = None,
    progress: Callable[[float], None] = ...,
) -> np.ndarray: ...
@overload
def upscale(
    image: Image,
    scale: float | None = None,
    *,
    size: Sequence[int] | None = None,
    model: str | Path | Network | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    tile: int | str | None = None,
    progress: Callable[[float], None] = ...,
) -> Image: ...
def upscale(
    image: np.ndarray | str | os.PathLike[str] | Image,
    scale: float | None = None,
    *,
    size: Sequence[int] | None = None,
    model: str | Path | Network | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    tile: int | str | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> np.ndarray | Image:
    """Make a photograph larger.

    Arguments:
        image: an array (H, W) or (H, W, C) with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB,
            alpha), of uint8, uint16 or floats in [0, 1]; a file's path; or a PIL image.
        scale: any real number from 1 to 16, above 4 in two passes. By default the model's own (4
            for a continuous one).
        size: (H_out, W_out) instead; each axis then has its own factor, from 1 to 16.
        model: a shipped model's name, a file or folder, or a network; by default the shipped one
            that suits this scale, and with "tiny" the small one that does. A lossy file's path
            brings the one for photographs ("hiet_swinir_photo"); arrays and PIL images, whose
            origin is not known, count as lossless.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        dtype: "float32", or "bfloat16" or "float16" for autocast.
        tile: side of the tiles in pixels of `image`; 0 for none; by default what memory allows.
        progress: called with the fraction that is done.

    Returns:
        The same kind and type of image, H_out x W_out; for a path, an array of uint8 or uint16.
        Alpha goes through the network too, as a grey picture, and colours under alpha 0 do not
        matter. A PIL image keeps its mode if that is one of L, LA, RGB, RGBA, I, F or I;16; others
        become RGB, or L or LA if they are grey, or RGBA with transparency. It keeps its ICC
        profile, and is turned upright.

    Raises:
        UpscaleError: scale, size, dtype or tile is out of range or does not suit the model, or the
            image holds what is not a picture, such as NaN.
        DeviceError: the device is not there.
        ImageError: the file cannot be read.
        ModelFileError: the model file holds something else.
        OutOfMemoryError: the smallest tiles do not fit.
    """
    target = None if scale is None and size is None else Target.of(scale, size)
    upscaler = Upscaler.load(target, model, device, dtype, tile)
    if isinstance(image, (str, os.PathLike)):
        data = image_file.read(image)
        parts = [data.pixels] if data.alpha is None else [data.pixels, data.alpha[..., None]]
        array = np.concatenate(parts, axis=2)
        if array.shape[2] == 1:
            array = array[..., 0]
        return upscale_array(array, upscaler, progress, lossy=data.lossy)
    if isinstance(image, np.ndarray):
        return upscale_array(image, upscaler, progress)
    if type(image).__module__.partition(".")[0] == "PIL" or hasattr(image, "getbands"):
        array, restore = pil_images.to_array(image)
        return restore(upscale_array(array, upscaler, progress))
    raise UpscaleError(
        f"image is a {type(image).__name__}; give a NumPy array, a path or a PIL image."
    )


def upscale_array(
    array: np.ndarray, upscaler: Upscaler, progress: Progress, lossy: bool = False
) -> np.ndarray:
    """`upscale` of an array."""
    check_array(array)
    picture = array[..., None] if array.ndim == 2 else array
    if picture.dtype.kind == "f":
        picture = picture.clip(0, 1)
    channels = picture.shape[2]
    colours = 1 if channels < 3 else 3
    alpha = picture[..., colours] if channels > colours else None
    out = np.empty((*upscaler.output_size(*picture.shape[:2]), channels), array.dtype)

    def sink(top: int, rows: np.ndarray) -> None:
        out[top : top + len(rows)] = rows

    upscaler.run(picture[..., :colours], alpha, sink, array.dtype, lossy=lossy, progress=progress)
    return out[..., 0] if array.ndim == 2 else out


def check_array(array: np.ndarray) -> None:
    """UpscaleError unless the array is a picture as `upscale` describes it."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise UpscaleError(
            f"image has the shape {array.shape}; it must be (H, W) or (H, W, 1 to 4)."
        )
    if array.size == 0:
        raise UpscaleError(f"image has the shape {array.shape}, without a pixel.")
    if array.dtype.kind != "f":
        if array.dtype not in (np.uint8, np.uint16):
            raise UpscaleError(
                f"image holds {array.dtype}; give uint8, uint16, or floats from 0 to 1."
            )
        return
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise UpscaleError("image holds NaN or infinity; replace them by colours first.")
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise UpscaleError(
            f"image holds floats from {low:g} to {high:g}; scale them to 0 to 1, or give uint8."
        )
