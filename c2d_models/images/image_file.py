"""Reading and writing photographs: PNG, JPEG, WebP, TIFF (and still GIF in), through libvips.

An image is read once into a NumPy array with everything a viewer needs to show it alike: bit depth,
alpha, ICC profile, EXIF. The upscaled image is far larger, so it is never held: `Writer` takes its
rows in any order into a raw file beside the destination; libvips then encodes that file strip by
strip into a second one, which replaces the destination in one step. Whatever interrupts this, the
destination is either the old file or the whole new one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips

from ..errors import ImageError

MAX_PIXELS = 2**28
"""Largest image read, in pixels: a file of a few bytes may claim any size."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)
_LOADERS = {"png": "pngload", "jpg": "jpegload", "webp": "webpload", "tiff": "tiffload"}
_LOADERS["gif"] = "gifload"
_SUFFIXES = {
    ".png": "png",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
OUTPUT_SUFFIXES = frozenset(_SUFFIXES)
"""File name endings (lower case) that can be written."""
INPUT_SUFFIXES = OUTPUT_SUFFIXES | {".gif"}
"""File name endings (lower case) that a folder is searched for."""
FORMATS = ("png", "jpg", "webp", "tiff")
"""Formats that can be written."""
_INTERPRETATIONS = ("b-w", "grey16", "srgb", "rgb", "rgb16", "cmyk", "multiband")
_KEEP_ALL, _KEEP_ALL_BUT_EXIF = 63, 62  # bits of VipsForeignKeep
_LONGEST_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383, "tiff": 2**31 - 1}


@dataclass
class ImageData:
    """A picture in memory.

    Attributes:
        pixels: (H, W, C) uint8 or uint16, C = 1 (grey) or 3 (RGB), upright: the EXIF orientation
            has been applied.
        alpha: (H, W) of the same type, or None.
        icc: the ICC profile of `pixels`, or None.
        exif: the EXIF block as it was in the file, or None. It is written back with orientation 1.
        format: "png", "jpg", "webp", "tiff" or "gif": what the file was (by content, not by name).
        metadata: libvips' header fields that `Writer` hands on (EXIF entries, XMP, resolution).
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "png"
    metadata: dict[str, tuple[int, Any]] = field(default_factory=dict, repr=False)

    @property
    def bit_depth(self) -> int:
        """Bits a sample: 8 or 16."""
        return 8 * self.pixels.dtype.itemsize


def format_of(path: str | Path) -> str:
    """The format that a file name asks for; ImageError for an ending that cannot be written."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ImageError(
            f"{path} ends in {suffix or 'nothing'}, which is not a format that can be written: "
            "use .png, .jpg, .webp or .tiff."
        )
    return _SUFFIXES[suffix]


def read(path: str | os.PathLike[str]) -> ImageData:
    """Read one photograph.

    CMYK becomes sRGB through its embedded profile (a generic one where there is none); a palette
    becomes RGB; any other profile is kept and the samples are left as they are. EXIF inside TIFF is
    not read (libvips has no reader for it).

    Raises:
        ImageError: the file is missing, empty, truncated, animated, multi-page, larger than
            `MAX_PIXELS`, of a sample type other than 8 or 16 bit integers, or not an image.
    """
    path = Path(path)
    kind = _sniff(path)
    try:
        # The loader is called by name: libvips' own guess would also take SVG, PDF or CSV, and
        # reads "[...]" at the end of a file name as options. Its cache must not show an old file.
        load = getattr(pyvips.Image, _LOADERS[kind])
        image = load(str(path), access="sequential", fail_on="error", revalidate=True)
    except pyvips.Error as error:
        raise ImageError(f"{path} is truncated or damaged ({_reason(error)}).") from None
    _check_header(path, image, kind)
    image = _to_grey_or_rgb(path, image)
    try:
        samples = image.numpy()
    except pyvips.Error as error:
        raise ImageError(f"{path} is truncated or damaged ({_reason(error)}).") from None
    samples = samples.reshape(image.height, image.width, image.bands)
    samples = _upright(samples, _value(image, "orientation", 1))
    colours = 1 if image.bands < 3 else 3
    metadata = {
        name: (image.get_typeof(name), image.get(name))
        for name in image.get_fields()
        if name in ("exif-data", "xmp-data", "iptc-data", "resolution-unit")
        or (name.startswith("exif-ifd") and name != "exif-ifd0-Orientation")
    }
    return ImageData(
        pixels=np.ascontiguousarray(samples[..., :colours]),
        alpha=np.ascontiguousarray(samples[..., colours]) if image.bands > colours else None,
        icc=_value(image, "icc-profile-data"),
        exif=_value(image, "exif-data"),
        format=kind,
        metadata=metadata | {"xres": (0, image.xres), "yres": (0, image.yres)},
    )


def write(path: str | Path, image: ImageData, **options: Any) -> None:
    """Write a picture whole; `options` are those of `Writer`."""
    height, width, _ = image.pixels.shape
    with Writer(path, height, width, like=image, **options) as writer:
        pixels = image.pixels
        if writer.dtype != pixels.dtype:
            pixels = reduce_to_8_bit(pixels)
        writer.write(0, pixels)
        writer.finish()


def reduce_to_8_bit(samples: np.ndarray) -> np.ndarray:
    """uint16 samples to the nearest uint8 (65535 is 255)."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """An (H, W) alpha plane at another size by libvips' bicubic (Catmull-Rom) kernel, clipped."""
    return _resized(alpha, height, width).numpy().reshape(height, width)


class Writer:
    """Writes an image that comes in strips, with memory for one strip, and all of it or nothing.

    Use as a context manager: `write` rows in any order, any number of times, then `finish`. Leaving
    the context without `finish` (an exception, Ctrl-C) removes every trace.

    Arguments:
        path: destination; its folder must exist.
        height, width: of the whole image.
        like: the picture whose channels, bit depth, alpha, profile and metadata the output takes.
            Its alpha is resized to (height, width). JPEG has no alpha: there the picture is laid
            over white. JPEG and WebP hold 8 bits.
        format: one of `FORMATS`; by default what the file name says.
        quality: 1 to 100, of JPEG and WebP.

    Attributes:
        dtype: what `write` takes: uint8 or uint16.

    Raises:
        ImageError: a side is too long for the format, the folder cannot be written, or the disk
            is full.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        *,
        like: ImageData,
        format: str | None = None,
        quality: int = 95,
    ) -> None:
        self.path = Path(path)
        self.format = format or format_of(path)
        self.quality = quality
        self.height, self.width, self.channels = height, width, like.pixels.shape[2]
        self.like = like
        deep = like.bit_depth == 16 and self.format in ("png", "tiff")
        self.dtype = np.dtype(np.uint16 if deep else np.uint8)
        longest = _LONGEST_SIDE[self.format]
        if max(height, width) > longest:
            raise ImageError(
                f"{path} would be {width}x{height}, but {self.format} allows at most {longest} "
                "pixels a side: choose another format (png, tiff) or a smaller scale."
            )
        # A leading dot keeps the folder walk and most viewers from taking them for pictures.
        mark = f".{self.path.stem[:64]}.{secrets.token_hex(4)}"
        self._raw = self.path.with_name(f"{mark}.raw")
        self._encoded = self.path.with_name(f"{mark}.{self.format}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Writer:
        # The file comes into being here, and under this `try`: a signal that arrives between the
        # creation and the body of the `with` must not leave it behind.
        try:
            self._check_space()
            self._file = open(self._raw, "x+b", buffering=0)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                reason = error.strerror or error
                raise ImageError(f"cannot write {self.path}: {reason}.") from None
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.discard()

    def write(self, top: int, rows: np.ndarray) -> None:
        """Put `rows` (h, width, channels) of `dtype` at row `top`; writing a row again replaces."""
        expected = (self.width, self.channels)
        if rows.dtype != self.dtype or rows.shape[1:] != expected or rows.ndim != 3:
            raise ValueError(
                f"rows are {rows.dtype} {rows.shape}, not {self.dtype} (h, *{expected})"
            )
        stride = self.width * self.channels * self.dtype.itemsize
        file = self._open_file()
        try:
            file.seek(top * stride)
            left = np.ascontiguousarray(rows).data.cast("B")
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise ImageError(f"cannot write {self.path}: {error.strerror or error}.") from None

    def finish(self) -> None:
        """Encode what was written and put it in place."""
        self._open_file().close()
        try:
            _interruptible(self._assemble(), self._encode)
            os.replace(self._encoded, self.path)
        except (pyvips.Error, OSError) as error:
            raise ImageError(f"cannot write {self.path}: {_reason(error)}.") from None
        finally:
            self.discard()

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("a Writer is written to inside its `with` block")
        return self._file

    def discard(self) -> None:
        """Remove the temporary files; harmless after `finish`."""
        if self._file is not None:
            self._file.close()
        for leftover in (self._raw, self._encoded):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(leftover)

    def _check_space(self) -> None:
        """The raw file and the encoded one may be there at the same time."""
        needed = 2 * self.height * self.width * self.channels * self.dtype.itemsize
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise ImageError(
                f"{self.path} needs up to {needed / 2**20:.0f} MiB while it is written, but "
                f"{self.path.parent} has {free / 2**20:.0f} MiB free."
            )

    def _assemble(self) -> pyvips.Image:
        """The output as a libvips pipeline over the raw file; nothing is computed yet."""
        deep = self.dtype == np.uint16
        grey = self.channels == 1
        image = pyvips.Image.rawload(
            str(self._raw),
            self.width,
            self.height,
            self.channels,
            format="ushort" if deep else "uchar",
            interpretation=("grey16" if deep else "b-w") if grey else ("rgb16" if deep else "srgb"),
            access="sequential",
        )
        alpha = self.like.alpha
        if alpha is not None:
            if alpha.dtype != self.dtype:
                alpha = reduce_to_8_bit(alpha)
            image = image.bandjoin(_resized(alpha, self.height, self.width))
            if self.format == "jpg":
                image = image.flatten(background=[255] * self.channels)
        image = image.copy(xres=self._resolution("xres"), yres=self._resolution("yres"))
        for name, (kind, value) in self.like.metadata.items():
            if kind:
                image.set_type(kind, name, value)
        if self.like.icc is not None:
            image.set_type(pyvips.GValue.blob_type, "icc-profile-data", self.like.icc)
        if self.like.exif is not None:
            image.set_type(pyvips.GValue.gint_type, "orientation", 1)
        return image

    def _resolution(self, name: str) -> float:
        return self.like.metadata.get(name, (0, 1.0))[1]

    def _encode(self, image: pyvips.Image) -> None:
        target = str(self._encoded)
        # Without this libvips would invent an EXIF block for a file that had none.
        keep = _KEEP_ALL_BUT_EXIF if self.like.exif is None else _KEEP_ALL
        if self.format == "png":
            image.pngsave(target, keep=keep)
        elif self.format == "jpg":
            # Optimised Huffman tables would hold the coefficients of the whole image.
            image.jpegsave(target, Q=self.quality, keep=keep)
        elif self.format == "webp":
            image.webpsave(target, Q=self.quality, keep=keep)
        else:
            huge = self.height * self.width * image.bands * self.dtype.itemsize > 2**31
            image.tiffsave(
                target, compression="deflate", predictor="horizontal", bigtiff=huge, keep=keep
            )


def _sniff(path: Path) -> str:
    """The format by the first bytes, or the sentence that says why there is none."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            if head.startswith(_SIGNATURES[0][0]) and _is_animated_png(file):
                raise ImageError(f"{path} is animated; only still images are read.")
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not an image.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not head:
        raise ImageError(f"{path} is empty.")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    raise ImageError(f"{path} is not a PNG, JPEG, WebP, TIFF or GIF image.")


def _is_animated_png(file: Any) -> bool:
    """Whether an acTL chunk comes before the pixels; libvips would show the first frame."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name in (b"acTL", b"IDAT", b"IEND"):
            return name == b"acTL"
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _check_header(path: str | Path, image: pyvips.Image, kind: str) -> None:
    """Refuse what cannot become one grey or RGB picture of 8 or 16 bits."""
    pages = _value(image, "n-pages", 1)
    if pages > 1 and kind == "tiff":
        raise ImageError(f"{path} holds {pages} pages; only single images are read.")
    if pages > 1:
        raise ImageError(f"{path} is animated ({pages} frames); only still images are read.")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{path} is too large: {image.width}x{image.height} is more than "
            f"{MAX_PIXELS // 10**6} megapixels."
        )


def _to_grey_or_rgb(path: str | Path, image: pyvips.Image) -> pyvips.Image:
    """Grey or RGB, with or without alpha, uchar or ushort; lazy."""
    if image.interpretation == "cmyk" and image.format in ("uchar", "ushort"):
        deep = image.format == "ushort"
        # "cmyk" is libvips' built-in profile, for files that embed none.
        image = image.icc_transform(
            "srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8
        )
    if image.format not in ("uchar", "ushort"):
        raise ImageError(
            f"{path} holds {image.format} samples; convert it to 8 or 16 bit integers first."
        )
    if image.interpretation not in _INTERPRETATIONS:
        raise ImageError(f"{path} is in {image.interpretation} colours; convert it to RGB first.")
    if image.bands - image.hasalpha() not in (1, 3):
        raise ImageError(
            f"{path} has {image.bands} channels; grey, RGB and CMYK, each with or without alpha, "
            "are read."
        )
    return image


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8; anything else counts as 1) to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _resized(alpha: np.ndarray, height: int, width: int) -> pyvips.Image:
    plane = pyvips.Image.new_from_array(np.ascontiguousarray(alpha)[..., None])
    return plane.resize(width / plane.width, vscale=height / plane.height, kernel="cubic")


def _interruptible(image: pyvips.Image, work: Any) -> None:
    """Run `work(image)` so that Ctrl-C stops it: libvips would not return before it is done."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(image)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="c2d-encode")
    image.set_progress(True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except BaseException:
        image.set_kill(True)
        thread.join()
        raise
    if failures:
        raise failures[0]


def _value(image: pyvips.Image, name: str, default: Any = None) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _reason(error: Exception) -> str:
    """The last line of a libvips message, or an operating system's reason."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
