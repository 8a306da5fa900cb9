"""Files of pictures, decoded: libvips' loaders, and what has to be known beside them.

The loader is called by name: libvips' own guess would also take SVG, PDF or CSV. A TIFF's tags are
read here too, because libvips does not tell what an extra channel is, which page is a thumbnail, or
that a camera raw shows its preview.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

os.environ.setdefault("VIPS_WARNING", "0")  # else libvips prints its own words on damaged files

import numpy as np
import pyvips

from ..errors import ImageError
from .formats import LOADERS, PILLOW_KINDS, TITLES, camera_raw, has_loader
from .metadata import webp_chunks
from .tiff_tags import SUB_IFDS, Directory, TagError, TagReader

_COMPRESSIONS = {
    6: "old-style JPEG",
    7: "JPEG",
    34925: "LZMA (liblzma)",
    34887: "LERC (liblerc)",
    50000: "Zstandard (libzstd)",
    50001: "WebP (libwebp)",
    50002: "JPEG XL (libjxl)",
    34712: "JPEG 2000 (OpenJPEG)",
}
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 3, 5: 4, 6: 3, 8: 3}  # channels by a TIFF's photometric number
_CFA, _LINEAR_RAW = 32803, 34892
_DNG_VERSION, _NEW_SUBFILE_TYPE, _BITS, _COMPRESSION, _PHOTOMETRIC = 50706, 254, 258, 259, 262
_SAMPLES, _EXTRA_SAMPLES = 277, 338
_MOST_MISSING = 0.5  # share of a JPEG's rows that may be missing before it is refused


@dataclass
class Decoded:
    """A picture in libvips, and what its container said.

    Attributes:
        image: lazy.
        colours: how many of its channels are colours.
        alpha: the channel that is alpha, or None. Colours are not multiplied by it: libvips divides
            those of a TIFF that are.
        lossy: whether compression has left traces.
        notes: sentences for the user.
    """

    image: pyvips.Image
    colours: int
    alpha: int | None
    lossy: bool = False
    notes: list[str] = field(default_factory=list)


def open_picture(name: str, kind: str, file: BinaryIO, max_pixels: int) -> Decoded:
    """A file of this kind, its header checked; the pixels are decoded when they are asked for.

    Raises:
        ImageError: no library reads this kind, it is a camera raw, or it claims too many pixels.
        pyvips.Error: the header is damaged, as the pixels may turn out to be; `reopen` has a way.
    """
    if not has_loader(kind):
        raise ImageError(
            f"{name} is a {TITLES.get(kind, kind.upper())} file, which the installed libraries do "
            "not read: " + ("install Pillow." if kind in PILLOW_KINDS else "convert it to PNG.")
        )
    if kind in PILLOW_KINDS:
        return _by_pillow(name, file, max_pixels)
    page = _tiff_page(name, file) if kind == "tiff" else None
    # libvips calls even most of a JPEG missing a warning.
    image = _open(kind, file, "warning" if kind == "jpg" else "error")
    _check_header(name, image, max_pixels)
    decoded = _described(kind, image, page)
    decoded.lossy = decoded.lossy or _is_lossy(kind, file)
    return decoded


def reopen(
    name: str, kind: str, file: BinaryIO, error: Exception, strict: bool, max_pixels: int
) -> Decoded:
    """The picture left after `error`: a JPEG as far as its data go, unless `strict`.

    Raises:
        ImageError: why there is nothing.
    """
    if kind == "heic":
        raise ImageError(
            f"{name} is a HEIC file, and the installed libvips has no decoder for it (libde265): "
            "convert it to JPEG first."
        )
    page = _tiff_page(name, file) if kind == "tiff" else None
    if page is not None and (cause := page.undecodable()):
        raise ImageError(
            f"{name} {cause}, which the installed libvips does not read: convert it first."
        )
    if kind == "jpg" and not strict:
        with contextlib.suppress(pyvips.Error):
            return _salvaged(name, file, max_pixels)
    raise ImageError(f"{name} is truncated or damaged ({_reason(error)}).")


def _open(kind: str, file: BinaryIO, fail_on: str) -> pyvips.Image:
    file.seek(0)
    descriptor = getattr(file, "fileno", None)
    try:
        source = pyvips.Source.new_from_descriptor(descriptor()) if descriptor else None
    except OSError:  # a file in memory
        source = None
    source = source or pyvips.Source.new_from_memory(file.read())
    load = getattr(pyvips.Image, f"{LOADERS[kind]}_source")
    return load(source, access="sequential", fail_on=fail_on)


def _salvaged(name: str, file: BinaryIO, max_pixels: int) -> Decoded:
    """As much of a damaged JPEG as there is; ImageError if that is less than half."""
    image = _open("jpg", file, "none")
    _check_header(name, image, max_pixels)
    whole = image.copy_memory()
    rows = whole.numpy().reshape(whole.height, -1)
    # libjpeg paints what is missing in one grey.
    missing = int((rows[::-1] == rows[-1, :1]).all(axis=1).argmin())
    if missing > _MOST_MISSING * whole.height or (rows == rows[0, 0]).all():
        raise ImageError(f"{name} is truncated or damaged: most of the picture is missing.")
    decoded = _described("jpg", whole, None)
    decoded.lossy = True
    lost = f"about {missing} of its {whole.height} rows are missing and grey"
    lost = lost if missing else "parts of the picture may be wrong"
    decoded.notes.append(f"the file is damaged; {lost} (--strict refuses such files)")
    return decoded


def _check_header(name: str, image: pyvips.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} is too large: {image.width}x{image.height} is more than "
            f"{max_pixels / 1e6:.4g} megapixels (--max-pixels raises that)."
        )


def _described(kind: str, image: pyvips.Image, page: _Page | None) -> Decoded:
    """Which channels are colours and which is alpha, and notes on what is left out."""
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    notes = []
    if page is not None:
        pages = page.pages
    if pages > 1 and kind == "tiff":
        notes.append(f"page 1 of {pages} is read")
    elif pages > 1:
        notes.append(f"it is animated; the first of {pages} frames is read")
    if page is None:
        alpha = image.bands - 1 if image.hasalpha() else None
        return Decoded(image, image.bands - image.hasalpha(), alpha, notes=notes)
    if page.by_rgba(image):
        return Decoded(image, 3, None if page.alpha is None else 3, notes=notes)
    others = image.bands - page.colours - (page.alpha is not None)
    if others == 1:
        notes.append("an extra channel that is not alpha is left out")
    elif others > 1:
        notes.append(f"{others} extra channels that are not alpha are left out")
    alpha = None if page.alpha is None else page.colours + page.alpha
    return Decoded(image, page.colours, alpha, page.lossy, notes)


def _is_lossy(kind: str, file: BinaryIO) -> bool:
    if kind == "webp":
        return any(name == b"VP8 " for name, _ in webp_chunks(file)) or any(
            data[16:20] == b"VP8 " for name, data in webp_chunks(file) if name == b"ANMF"
        )
    return kind in ("jpg", "avif", "heic", "jxl")


@dataclass
class _Page:
    """The first page of a TIFF that is not a thumbnail, by its tags."""

    directory: Directory
    pages: int

    @property
    def colours(self) -> int:
        samples = self.directory.integer(_SAMPLES, 1)
        known = _COLOURS.get(self.directory.integer(_PHOTOMETRIC, 1), samples)
        palette = self.directory.integer(_PHOTOMETRIC, 1) == 3
        return known if palette else min(known, samples)

    @property
    def extra(self) -> tuple[int, ...]:
        """Kinds of the channels after the colours: 1 associated alpha, 2 alpha, else anything."""
        samples = self.directory.integer(_SAMPLES, 1)
        if self.directory.integer(_PHOTOMETRIC, 1) == 3:
            return ()
        return self.directory.integers(_EXTRA_SAMPLES)[: max(samples - self.colours, 0)]

    @property
    def alpha(self) -> int | None:
        """Which of the extra channels is alpha."""
        return next((i for i, kind in enumerate(self.extra) if kind in (1, 2)), None)

    @property
    def lossy(self) -> bool:
        return self.directory.integer(_COMPRESSION, 1) in (6, 7)

    def by_rgba(self, image: pyvips.Image) -> bool:
        """Whether libvips took libtiff's conversion to RGBA, which changes the channels."""
        return self.directory.integer(_PHOTOMETRIC, 1) == 6 and image.bands == 4

    def undecodable(self) -> str | None:
        """Why libtiff refuses the page, as far as its tags tell."""
        compression = self.directory.integer(_COMPRESSION, 1)
        bits = self.directory.integer(_BITS, 1)
        if compression in _COMPRESSIONS and compression != 7:
            return f"is compressed by {_COMPRESSIONS[compression]}"
        if bits not in (1, 2, 4, 8, 16, 32, 64):
            return f"holds samples of {bits} bits"
        if self.directory.integer(_PHOTOMETRIC, 1) in (8, 9, 10):
            return f"is in Lab colours of {bits} bits"
        return None


def _tiff_page(name: str, file: BinaryIO) -> _Page | None:
    """The page to read; ImageError for camera raws. None if the tags make no sense."""
    try:
        reader = TagReader(file)
        directories = list(_as_far_as_sound(reader))
        if not directories:
            return None
        first = directories[0]
        for directory in (first, *reader.children(first, SUB_IFDS)):
            if directory.integer(_PHOTOMETRIC, 1) in (_CFA, _LINEAR_RAW):
                raise camera_raw(name)
        thumbnail = bool(first.integer(_NEW_SUBFILE_TYPE) & 1)
        if _DNG_VERSION in first.entries or (thumbnail and SUB_IFDS in first.entries):
            raise camera_raw(name)
        if first.integer(_COMPRESSION, 1) == 6:
            raise ImageError(
                f"{name} is compressed by old-style JPEG, which libtiff reads wrongly: convert it "
                "with the program that made it."
            )
        pages = [each for each in directories[1:] if not _is_thumbnail(each, first)]
        return _Page(first, 1 + len(pages))
    except (TagError, struct.error):
        return None


def _is_thumbnail(page: Directory, first: Directory) -> bool:
    """Whether a page says so, or is the first one at a third of its size or less."""
    if page.integer(_NEW_SUBFILE_TYPE) & 1:
        return True
    (width, height), (wide, high) = (
        (each.integer(256), each.integer(257)) for each in (page, first)
    )
    same_shape = abs(width * high - height * wide) <= max(wide, high)  # to one pixel
    return same_shape and 3 * width <= wide and 3 * height <= high


def _as_far_as_sound(reader: TagReader) -> Iterator[Directory]:
    with contextlib.suppress(TagError, struct.error):
        yield from reader.chain()


def _by_pillow(name: str, file: BinaryIO, max_pixels: int) -> Decoded:
    """BMP and JPEG 2000, which this libvips has no loader for."""
    from PIL import Image, UnidentifiedImageError

    file.seek(0)
    try:
        with Image.open(file, formats=["BMP", "JPEG2000"]) as opened:
            size = pyvips.Image.black(*opened.size)
            _check_header(name, size, max_pixels)
            grey = opened.mode in ("1", "L")
            alpha = opened.mode in ("LA", "RGBA", "PA")
            samples = np.asarray(opened.convert("L" if grey else "RGBA" if alpha else "RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as e:
        raise ImageError(f"{name} is truncated or damaged ({e}).") from None
    image = pyvips.Image.new_from_array(np.ascontiguousarray(samples))
    colours = 1 if grey else 3
    return Decoded(image, colours, colours if alpha else None)


def _reason(error: Exception) -> str:
    """The last line of a libvips message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
