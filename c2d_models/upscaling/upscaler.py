"""Photographs made larger, in memory: the function `upscale`, and the settings of a run."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from ..devices import choose_device, memory_budget
from ..errors import UpscaleError
from ..images import image_file
from ..networks.network import Network
from ..pretrained import loading
from . import tiling

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Upscaler:
    """A network on its device with the settings of a run; `load` makes one.

    Attributes:
        net: in evaluation mode.
        scale: of the request, or None when `size` is given.
        size: (H_out, W_out), or None.
        dtype: float32, or the type the network computes in under autocast. The bilinear part of
            the output and the blending stay in float32: a half-precision one would band.
        tile: side in LR pixels, 0 for no tiles, None for as large as memory allows.
    """

    net: Network
    scale: float | None
    size: tuple[int, int] | None
    device: torch.device
    dtype: torch.dtype = torch.float32
    tile: int | None = None

    @classmethod
    def load(
        cls,
        scale: float | None = None,
        size: Sequence[int] | None = None,
        model: str | Path | Network | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        tile: int | str | None = None,
    ) -> Upscaler:
        """Check the settings, then load the model; arguments as in `upscale`."""
        check_target(scale, size)
        place = choose_device(device)
        kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if kind is None or kind not in DTYPES.values():
            raise UpscaleError(f"dtype is {dtype}; use {', '.join(DTYPES)}.")
        side = check_tile(tile)
        if isinstance(model, Network):
            net = model.to(place)
        else:
            net = loading.load(choose_model(scale, size) if model is None else model, place)
            net.float()
        net.prepare()
        if scale is None and size is None:
            scale = float(net.scale or 4)
        if net.scale is not None and scale not in (None, net.scale):
            raise UpscaleError(
                f"{_title(net)} enlarges by {net.scale} only; for {scale:g} take a continuous "
                "model (c2d models lists them)."
            )
        exact = None if size is None else (size[0], size[1])
        return cls(net, scale, exact, place, kind, side)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H_out, W_out) for an image; a given size has a factor of its own, 1 to 4, on each axis.

        Raises:
            UpscaleError: the size is out of reach.
        """
        if self.scale is not None:
            return math.floor(height * self.scale + 0.5), math.floor(width * self.scale + 0.5)
        assert self.size is not None  # one of the two is given
        for got, have, axis in zip(self.size, (height, width), ("height", "width"), strict=True):
            if not have <= got <= 4 * have:
                raise UpscaleError(
                    f"size asks for {axis} {got} from {have}; each axis can grow by 1 to 4, "
                    f"here to {have} to {4 * have}."
                )
        factor = self.net.scale
        if factor is not None and self.size != (factor * height, factor * width):
            raise UpscaleError(
                f"{_title(self.net)} makes {factor * width}x{factor * height} of this image; for "
                f"{self.size[1]}x{self.size[0]} take a continuous model (c2d models lists them)."
            )
        return self.size

    def run(
        self,
        pixels: np.ndarray,
        sink: Callable[[int, np.ndarray], None],
        dtype: np.dtype,
        *,
        folder: Path | None = None,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """Enlarge (H, W, 1 or 3) pixels; `sink` takes (first row, (h, W_out, 1 or 3) of `dtype`).

        Integers span their whole range, floats [0, 1]. A grey picture goes through the network as
        three equal channels, whose mean comes out. The other arguments are those of `tiling.run`.

        Raises:
            UpscaleError: the network's numbers overflowed in half precision.
        """
        height, width, channels = pixels.shape
        full = _full_scale(pixels.dtype)

        def source(y0: int, y1: int, x0: int, x1: int) -> Tensor:
            part = torch.from_numpy(pixels[y0:y1, x0:x1].astype(np.float32) / np.float32(full))
            return part.to(self.device).permute(2, 0, 1).expand(3, -1, -1)[None]

        def deliver(top: int, rows: Tensor) -> None:
            rows = rows.float()
            if not torch.isfinite(rows).all():
                raise UpscaleError(
                    f"{_title(self.net)} overflows in {str(self.dtype).removeprefix('torch.')} on "
                    "this image: use dtype bfloat16 or float32."
                )
            if channels == 1:
                rows = rows.mean(dim=0, keepdim=True)
            sink(top, _quantise(rows.clamp(0, 1).permute(1, 2, 0).cpu().numpy(), dtype))

        budget = memory_budget(self.device)
        plan = tiling.Plan.fit(self.net, height, width, budget, self.tile)
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext():
            tiling.run(
                self.net,
                source,
                deliver,
                (height, width),
                self.output_size(height, width),
                plan,
                folder=folder,
                progress=progress,
            )


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
        scale: any real number from 1 to 4. By default the model's own (4 for a continuous one).
        size: (H_out, W_out) instead; each axis then has its own factor, from 1 to 4.
        model: a shipped model's name, a file or folder, or a network; by default the shipped one
            for this scale: the discrete x4 for 4, else the continuous one.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        dtype: "float32", or "bfloat16" or "float16" for autocast.
        tile: side of the tiles in pixels of `image`; 0 for none; by default what memory allows.
        progress: called with the fraction that is done.

    Returns:
        The same kind and type of image, H_out x W_out; for a path, an array of uint8 or uint16.
        Alpha is resized alone, bicubically. A PIL image keeps its mode (one of L, LA, RGB, RGBA,
        I;16; others become RGB or RGBA) and its ICC profile, and is turned upright.

    Raises:
        UpscaleError: scale, size, dtype or tile is out of range or does not suit the model.
        DeviceError: the device is not there.
        ImageError: the file cannot be read.
        ModelFileError: the model file is of something else.
        OutOfMemoryError: the smallest tiles do not fit.
    """
    upscaler = Upscaler.load(scale, size, model, device, dtype, tile)
    if isinstance(image, (str, os.PathLike)):
        data = image_file.read(image)
        parts = [data.pixels] if data.alpha is None else [data.pixels, data.alpha[..., None]]
        array = np.concatenate(parts, axis=2)
        if array.shape[2] == 1:
            array = array[..., 0]
        return _upscale_array(array, upscaler, progress)
    if isinstance(image, np.ndarray):
        return _upscale_array(image, upscaler, progress)
    if type(image).__module__.partition(".")[0] == "PIL" or hasattr(image, "getbands"):
        return _upscale_pil(image, upscaler, progress)
    raise UpscaleError(
        f"image is a {type(image).__name__}; give a NumPy array, a path or a PIL image."
    )


def check_target(scale: float | None, size: Sequence[int] | None) -> None:
    """UpscaleError unless at most one is given and it is in range."""
    if scale is not None and size is not None:
        raise UpscaleError("scale and size are both given; choose one.")
    if scale is not None and not 1 <= scale <= 4:
        raise UpscaleError(f"scale is {scale:g}; it must be from 1 to 4.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UpscaleError(f"size is {tuple(size)}; it must be two whole numbers from 1 on.")


def check_tile(tile: int | str | None) -> int | None:
    """The side asked for, or None for auto."""
    if tile is None or tile == "auto":
        return None
    try:
        side = int(tile)
    except ValueError:
        side = -1
    if side < 0:
        raise UpscaleError(f"tile is {tile}; give a side in pixels, 0 for no tiles, or auto.")
    return side


def choose_model(scale: float | None, size: Sequence[int] | None = None) -> str:
    """The shipped model for a scale: a discrete one for exactly that factor, else a continuous one.

    HiET-SwinIR is preferred, and of two the larger.
    """
    wanted = 4 if scale is None and size is None else scale
    shipped = loading.list_models()
    fitting = [m for m in shipped if m.scale is not None and m.scale == wanted]
    fitting = fitting or [m for m in shipped if m.scale is None]
    if not fitting:
        request = f"scale {wanted:g}" if wanted else "this size"
        raise UpscaleError(
            f"no shipped model serves {request}; name a checkpoint file as the model."
        )
    return max(fitting, key=lambda m: (m.name.startswith("hiet_swinir"), m.params, m.name)).name


def _upscale_array(
    array: np.ndarray, upscaler: Upscaler, progress: Callable[[float], None]
) -> np.ndarray:
    """`upscale` of an array."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise UpscaleError(
            f"image has the shape {array.shape}; it must be (H, W) or (H, W, 1 to 4)."
        )
    if array.size == 0:
        raise UpscaleError(f"image has the shape {array.shape}, without a pixel.")
    if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise UpscaleError(f"image holds {array.dtype}; give uint8, uint16, or floats from 0 to 1.")
    picture = array[..., None] if array.ndim == 2 else array
    channels = picture.shape[2]
    colours = 1 if channels < 3 else 3
    height, width = upscaler.output_size(*picture.shape[:2])
    out = np.empty((height, width, channels), array.dtype)

    def sink(top: int, rows: np.ndarray) -> None:
        out[top : top + len(rows), :, :colours] = rows

    upscaler.run(picture[..., :colours], sink, array.dtype, progress=progress)
    if channels > colours:
        alpha = picture[..., colours]
        if alpha.dtype.kind == "f":
            out[..., colours] = image_file.resize_alpha(
                alpha.astype(np.float32), height, width
            ).clip(0, 1)
        else:
            out[..., colours] = image_file.resize_alpha(alpha, height, width)
    return out[..., 0] if array.ndim == 2 else out


def _upscale_pil(image: Image, upscaler: Upscaler, progress: Callable[[float], None]) -> Image:
    """`upscale` of a PIL image."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        array = np.asarray(image).astype(np.uint16)
    else:
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            transparent = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
            image = image.convert("RGBA" if transparent else "RGB")
        array = np.asarray(image)
    result = Image.fromarray(_upscale_array(array, upscaler, progress))
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result


def _full_scale(dtype: np.dtype) -> int:
    """What stands for 1.0."""
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _quantise(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats in [0, 1] to `dtype`, rounded to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return (values * _full_scale(dtype) + 0.5).astype(dtype)


def _title(net: Any) -> str:
    return net.name or type(net).__name__
