"""A large image written as its rows come, with memory for a strip of it, and all of it or nothing.

The rows go, in any order, into a raw file beside the destination; libvips then encodes that file
strip by strip into a second one, which replaces the destination in one step. Whatever interrupts
this, the destination is either the old file or the whole new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyvips

from ..errors import ImageError
from ..files import temporary
from .colours import profile_of_cicp
from .embedding import Embedder, end_tiff
from .formats import format_of
from .image_data import ImageData
from .metadata import Metadata

_LONGEST_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383, "tiff": 2**31 - 1}
_KEEP_ICC = 8  # VipsForeignKeep


def reduce_to_8_bit(samples: np.ndarray) -> np.ndarray:
    """uint16 samples to the nearest uint8 (65535 is 255)."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


class Writer:
    """An image file in the making.

    Use as a context manager: `write` rows in any order, any number of times, then `finish`. Leaving
    the context without `finish` (an exception, Ctrl-C) removes every trace.

    Arguments:
        path: destination; its folder must exist.
        height, width: of the whole image.
        like: the picture whose channels, bit depth, profile and metadata the output takes. JPEG has
            no alpha: there the picture is laid over white. JPEG and WebP hold 8 bits.
        format: one of `FORMATS`; by default what the file name says.
        quality: 1 to 100, of JPEG and WebP. From 90 on JPEG keeps colour at full resolution; WebP
            can do that only without loss, which is what 100 means there.
        lossless: of WebP; by default as `like` was, if it was a WebP.
        metadata: "keep", or "strip" for the colour profile alone.

    Attributes:
        dtype: what `write` takes: uint8 or uint16.
        channels: of the rows, alpha last if `like` has alpha.

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
        lossless: bool | None = None,
        metadata: str = "keep",
    ) -> None:
        self.path = Path(path)
        self.format = format or format_of(path)
        self.quality = quality
        self.height, self.width = height, width
        self.colours = like.pixels.shape[2]
        self.channels = self.colours + (like.alpha is not None)
        self.metadata = like.metadata.enlarged(height, width)
        if metadata == "strip":
            self.metadata = Metadata(cicp=like.metadata.cicp)
        self.icc = like.icc
        if self.icc is None and self.format != "png":
            self.icc = profile_of_cicp(self.metadata.cicp)
        if lossless is None:
            lossless = (like.format == "webp" and not like.lossy) or quality == 100
        elif lossless and self.format == "jpg":
            raise ImageError(f"{path} would be a JPEG, which is never lossless: use png.")
        self.lossless = lossless
        deep = like.bit_depth == 16 and self.format in ("png", "tiff")
        self.dtype = np.dtype(np.uint16 if deep else np.uint8)
        longest = _LONGEST_SIDE[self.format]
        if max(height, width) > longest:
            raise ImageError(
                f"{path} would be {width}x{height}, but {self.format} allows at most {longest} "
                "pixels a side: choose another format (png, tiff) or a smaller scale."
            )
        # Hidden, so the folder walk and most viewers do not take them for pictures.
        self._raw = temporary(self.path.parent, "raw")
        self._encoded = temporary(self.path.parent)
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
        image = self._assemble(self._open_file())
        try:
            _interruptible(image, self._encode)
            os.replace(self._encoded, self.path)
        except (pyvips.Error, OSError) as error:
            raise ImageError(f"cannot write {self.path}: {_reason(error)}.") from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary files; harmless after `finish`."""
        if self._file is not None:
            self._file.close()
        for leftover in (self._raw, self._encoded):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(leftover)

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("a Writer is written to inside its `with` block")
        return self._file

    def _check_space(self) -> None:
        """The raw file and the encoded one may be there at the same time."""
        needed = 2 * self.height * self.width * self.channels * self.dtype.itemsize
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise ImageError(
                f"{self.path} needs up to {needed / 2**20:.0f} MiB while it is written, but "
                f"{self.path.parent} has {free / 2**20:.0f} MiB free."
            )

    def _assemble(self, raw: BinaryIO) -> pyvips.Image:
        """The output as a libvips pipeline over the raw file; nothing is computed yet."""
        deep, grey = self.dtype == np.uint16, self.colours == 1
        try:
            place = str(self._raw)
            place.encode()
        except UnicodeEncodeError:  # a folder's name that is not UTF-8, which libvips wants
            place = f"/dev/fd/{raw.fileno()}"
        image = pyvips.Image.rawload(
            place,
            self.width,
            self.height,
            self.channels,
            format="ushort" if deep else "uchar",
            interpretation=("grey16" if deep else "b-w") if grey else ("rgb16" if deep else "srgb"),
            access="sequential",
        )
        if self.channels > self.colours and self.format == "jpg":
            image = image.flatten(background=[255] * self.colours)
        if self.icc is not None:
            image = image.copy()
            image.set_type(pyvips.GValue.blob_type, "icc-profile-data", self.icc)
            if grey and self.format == "webp":  # holds RGB alone, which no grey profile describes
                image = image.icc_transform("srgb", embedded=True)
                image = image.copy()
                image.remove("icc-profile-data")
        return image

    def _encode(self, image: pyvips.Image) -> None:
        if self.format == "tiff":
            self._encode_tiff(image)
            return
        with open(self._encoded, "xb") as file:
            embedder = Embedder(file, self.format, self.metadata, self.height, self.width)
            target = pyvips.TargetCustom()
            target.on_write(embedder.write)
            try:
                if self.format == "png":
                    image.pngsave_target(target, keep=_KEEP_ICC)
                elif self.format == "jpg":
                    # Optimised Huffman tables would hold the coefficients of the whole image.
                    image.jpegsave_target(target, Q=self.quality, keep=_KEEP_ICC)
                else:
                    image.webpsave_target(
                        target,
                        Q=self.quality,
                        lossless=self.lossless,
                        smart_subsample=True,
                        keep=_KEEP_ICC,
                    )
            except pyvips.Error:
                if embedder.error is not None:
                    raise embedder.error from None
                raise
            embedder.end()

    def _encode_tiff(self, image: pyvips.Image) -> None:
        size = self.height * self.width * image.bands * self.dtype.itemsize
        with open(self._encoded, "x+b") as file:
            image.tiffsave_target(
                pyvips.Target.new_to_descriptor(file.fileno()),
                compression="deflate",
                predictor="horizontal",
                bigtiff=size > 2**31,
                keep=_KEEP_ICC,
            )
        end_tiff(self._encoded, self.metadata)


def _interruptible(image: pyvips.Image, work: Callable[[pyvips.Image], None]) -> None:
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


def _reason(error: Exception) -> str:
    """The last line of a libvips message, or an operating system's reason."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
