"""A file's format: by its ending for writing and for folders, by its first bytes for reading."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import BinaryIO

import pyvips

from ..errors import ImageError

FORMATS = ("png", "jpg", "webp", "tiff")
"""Formats that can be written."""
_SUFFIXES = {
    ".png": "png",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".jpe": "jpg",
    ".jfif": "jpg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
OUTPUT_SUFFIXES = frozenset(_SUFFIXES)
"""File name endings (lower case) that can be written."""

_RAW = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf "
    ".raw .rw2 .rwl .sr2 .srf .srw .x3f"
)
_NOT_READ = (
    ".ai .dib .emf .eps .exr .hdr .heic .heics .heif .hif .ico .j2k .jpf .jpx .pbm .pcx .pdf .pgm "
    ".pnm .ppm .psb .psd .svg .svgz .tga .wmf .xcf"
)

RAW_SUFFIXES = frozenset(_RAW.split())
"""Camera raws: TIFF-based ones show only their thumbnail to a TIFF reader."""

LOADERS = {
    "png": "pngload",
    "jpg": "jpegload",
    "webp": "webpload",
    "tiff": "tiffload",
    "gif": "gifload",
    "avif": "heifload",
    "heic": "heifload",
    "jxl": "jxlload",
}
"""The libvips operation for each kind of file. BMP and JPEG 2000 are Pillow's."""
PILLOW_KINDS = ("bmp", "jp2")
TITLES = {"avif": "AVIF", "heic": "HEIC", "jxl": "JPEG XL", "bmp": "BMP", "jp2": "JPEG 2000"}


def has_loader(kind: str) -> bool:
    """Whether the installed libraries read this kind of file. HEIC needs its codec besides."""
    if kind in PILLOW_KINDS:
        return importlib.util.find_spec("PIL") is not None
    return bool(pyvips.type_find("VipsOperation", LOADERS[kind]))


_OPTIONAL = {".avif": "avif", ".jxl": "jxl", ".bmp": "bmp", ".jp2": "jp2"}
INPUT_SUFFIXES = (
    OUTPUT_SUFFIXES | {".gif"} | {end for end, kind in _OPTIONAL.items() if has_loader(kind)}
)
"""File name endings (lower case) that a folder is searched for: what is read on this machine."""
KNOWN_SUFFIXES = INPUT_SUFFIXES | RAW_SUFFIXES | _OPTIONAL.keys() | frozenset(_NOT_READ.split())
"""Endings of picture files: a folder names those that are not read."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"BM", "bmp"),
)
_RAW_SIGNATURES = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
_BRANDS = {b"avif": "avif", b"avis": "avif"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"), "heic"
)
_OTHERS = (
    (b"%PDF", "a PDF document; export its pages as PNG or TIFF first"),
    (b"8BPS", "a Photoshop document; export it as PNG or TIFF first"),
    (b"<svg", "an SVG drawing, which has no pixels to enlarge: render it at the size you need"),
    (b"<?xml", "a text file (XML or SVG); render a drawing as PNG at the size you need"),
)


def format_of(path: str | Path) -> str:
    """The format that a file name asks for; ImageError for an ending that cannot be written."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ImageError(
            f"{path} ends in {suffix or 'nothing'}, which is not a format that can be written: "
            "use .png, .jpg, .webp or .tiff."
        )
    return _SUFFIXES[suffix]


def sniff(name: str, file: BinaryIO) -> str:
    """The kind of file by its first bytes, or an ImageError that says what it is instead."""
    head = file.read(32)
    if not head:
        raise ImageError(f"{name} is empty.")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(_RAW_SIGNATURES) or head[4:12] == b"ftypcrx " or head[8:10] == b"CR":
        raise camera_raw(name)
    if head[4:8] == b"ftyp":
        kind = _isobmff(head, file)
        if kind is not None:
            return kind
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            if kind == "tiff" and Path(name).suffix.lower() in RAW_SUFFIXES:
                raise camera_raw(name)
            return kind
    for signature, what in _OTHERS:
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(signature):
            raise ImageError(f"{name} is {what}.")
    raise ImageError(f"{name} is not a PNG, JPEG, WebP, TIFF, GIF, BMP or AVIF image.")


def camera_raw(name: str) -> ImageError:
    """The refusal of a file that has not been developed."""
    return ImageError(
        f"{name} is a camera raw file; develop it first (darktable, RawTherapee, the camera's own "
        "program) and enlarge the TIFF or JPEG that comes out."
    )


def _isobmff(head: bytes, file: BinaryIO) -> str | None:
    """AVIF or HEIC by the brands of the first box."""
    size = min(int.from_bytes(head[:4], "big"), 4096)
    file.seek(8)
    brands = file.read(max(size - 8, 4))
    for at in (0, *range(8, len(brands), 4)):
        if kind := _BRANDS.get(brands[at : at + 4]):
            return kind
    return "heic" if brands[:4] in (b"mif1", b"msf1") else None
