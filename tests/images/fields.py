"""Metadata of a picture: written by Pillow, and read by Pillow again.

`FIELDS` is the table of docs/formats.md: each field is put into a file of each kind that holds it,
and looked for in what this package writes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from PIL import (
    ExifTags,
    Image,
    ImageCms,
    IptcImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
)

KINDS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF"}
"""Endings, and Pillow's names."""
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="a tree"/></rdf:RDF></x:xmpmeta>'
)
IPTC = b"\x1c\x02\x78\x00\x06a bird"  # caption
PARAMETERS = "a tree with a bird\nSteps: 40, Seed: 968002204"


@dataclass(frozen=True)
class Field:
    """A field, and the two halves of its test.

    Attributes:
        name: as docs/formats.md calls it.
        kinds: of files that it is put into.
        put: (kind, picture) to a file's bytes.
        found: what the file at a path says of it, as the docs put it; None for nothing.
    """

    name: str
    kinds: tuple[str, ...]
    put: Callable[[str, Image.Image], bytes]
    found: Callable[[Path], str | None]


def saved(kind: str, picture: Image.Image, **options: Any) -> bytes:
    """The picture as a file of this kind, by Pillow."""
    buffer = io.BytesIO()
    if kind in ("jpg", "webp"):
        options.setdefault("quality", 90)
    picture.save(buffer, KINDS[kind], **options)
    return buffer.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    """Fields of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def chunk(name: bytes, data: bytes) -> bytes:
    """Fields of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))


def texts(**pairs: str) -> PngImagePlugin.PngInfo:
    """A PNG's text chunks."""
    info = PngImagePlugin.PngInfo()
    for keyword, value in pairs.items():
        info.add_text(keyword, value)
    return info


def exif(**main: Any) -> Image.Exif:
    """A camera's block: maker, time, place and what is given for the main directory."""
    block = Image.Exif()
    block[ExifTags.Base.Make] = "Maker"
    for name, value in main.items():
        block[ExifTags.Base[name]] = value
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:01:02 03:04:05"
    block.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    block.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 28.0, 38.0)
    return block


def with_exif(kind: str, picture: Image.Image, block: Image.Exif) -> bytes:
    """A file with this block; Pillow leaves a TIFF's inner directories out unless they are told."""
    if kind != "tiff":
        return saved(kind, picture, exif=block)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.Make.value] = block[ExifTags.Base.Make]
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        tags.tagtype[tag.value] = TiffTags.LONG
        tags[tag.value] = block.get_ifd(tag)
    return saved(kind, picture, tiffinfo=tags)


def _put_xmp(kind: str, picture: Image.Image) -> bytes:
    if kind == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return saved(kind, picture, pnginfo=info)
    if kind == "tiff":
        return saved(kind, picture, tiffinfo={700: XMP})
    return saved(kind, picture, xmp=XMP)


def _put_iptc(kind: str, picture: Image.Image) -> bytes:
    if kind == "tiff":
        return saved(kind, picture, tiffinfo={33723: IPTC})
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
    if kind == "png":
        block = b"Photoshop 3.0\0" + resource
        text = f"\niptc\n{len(block):8}\n{block.hex()}\n"
        return saved(kind, picture, pnginfo=texts(**{"Raw profile type iptc": text}))
    plain = saved(kind, picture)
    return plain[:2] + segment(0xED, b"Photoshop 3.0\0" + resource) + plain[2:]


def _put_cicp(kind: str, picture: Image.Image) -> bytes:
    plain = saved(kind, picture)
    return plain[:33] + chunk(b"cICP", bytes([12, 13, 0, 1])) + plain[33:]


def _exif_of(path: Path) -> tuple[dict, dict, dict]:
    block = Image.open(path).getexif()
    inner = (block.get_ifd(tag) for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))
    return dict(block), *map(dict, inner)


def stated_dpi(path: Path) -> tuple[float, float] | None:
    """The resolution of the container's own, in dots per inch, if it states one."""
    picture = Image.open(path)
    silent = {
        "WEBP": lambda: True,
        "JPEG": lambda: not picture.info.get("jfif_unit"),
        "TIFF": lambda: 282 not in picture.tag_v2,
        "PNG": lambda: False,
    }
    if silent[picture.format]() or "dpi" not in picture.info:
        return None
    x, y = picture.info["dpi"]
    return float(x), float(y)


def _resolution(path: Path) -> str | None:
    stated = stated_dpi(path)
    if stated is None:
        return None
    x, y = stated
    return "kept" if abs(x - 300) < 0.5 and abs(y - 150) < 0.5 else f"as {x:.0f}x{y:.0f}"


def _camera(path: Path) -> str | None:
    main, inner, _ = _exif_of(path)
    whole = main.get(ExifTags.Base.Make) == "Maker"
    whole = whole and inner.get(ExifTags.Base.DateTimeOriginal) == "2026:01:02 03:04:05"
    return "kept" if whole else None


def _place(path: Path) -> str | None:
    _, _, gps = _exif_of(path)
    latitude = tuple(map(float, gps.get(ExifTags.GPS.GPSLatitude, ())))
    return "kept" if latitude == (51, 28, 38) else None


def _xmp(path: Path) -> str | None:
    picture = Image.open(path)
    packet = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp")
    packet = packet.encode() if isinstance(packet, str) else packet
    return "kept" if packet and b'dc:format="a tree"' in packet else None


def _iptc(path: Path) -> str | None:
    picture = Image.open(path)
    if picture.format == "PNG":
        text = picture.info.get("Raw profile type iptc", "")
        return "kept" if IPTC.hex() in text.replace("\n", "") else None
    records = IptcImagePlugin.getiptcinfo(picture) if picture.format != "WEBP" else None
    return "kept" if records and records.get((2, 120)) == b"a bird" else None


def _parameters(path: Path) -> str | None:
    picture = Image.open(path)
    if getattr(picture, "text", {}).get("parameters") == PARAMETERS:
        return "kept"
    comment = _exif_of(path)[1].get(ExifTags.Base.UserComment, b"")
    kept = comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be") == PARAMETERS
    return "as EXIF's UserComment" if kept else None


def _comment(path: Path) -> str | None:
    picture = Image.open(path)
    if picture.format == "JPEG":
        return "kept" if picture.info.get("comment") == b"seen at noon" else None
    if getattr(picture, "text", {}).get("Comment") == "seen at noon":
        return "as text Comment"
    comment = _exif_of(path)[1].get(ExifTags.Base.UserComment, b"")
    kept = comment[8:].decode("utf-16-be") == "seen at noon"
    return "as EXIF's UserComment" if kept else None


def _profile(path: Path) -> str | None:
    return "kept" if Image.open(path).info.get("icc_profile") == PROFILE else None


def _cicp(path: Path) -> str | None:
    if b"cICP" + bytes([12, 13, 0, 1]) in path.read_bytes():
        return "kept"
    profile = Image.open(path).info.get("icc_profile")
    if profile is None:
        return None
    red = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.red_primary
    return "as an ICC profile" if abs(red[1][0] - 0.680) < 0.002 else "as a wrong ICC profile"


FIELDS = (
    Field(
        "Resolution",
        ("png", "jpg", "tiff"),
        lambda kind, picture: saved(kind, picture, dpi=(300, 150)),
        _resolution,
    ),
    Field(
        "EXIF: camera, time",
        ("png", "jpg", "webp", "tiff"),
        lambda kind, picture: with_exif(kind, picture, exif()),
        _camera,
    ),
    Field(
        "EXIF: place",
        ("png", "jpg", "webp", "tiff"),
        lambda kind, picture: with_exif(kind, picture, exif()),
        _place,
    ),
    Field("XMP", ("png", "jpg", "webp", "tiff"), _put_xmp, _xmp),
    Field("IPTC", ("png", "jpg", "tiff"), _put_iptc, _iptc),
    Field(
        "Texts, such as `parameters`",
        ("png",),
        lambda kind, picture: saved(kind, picture, pnginfo=texts(parameters=PARAMETERS)),
        _parameters,
    ),
    Field(
        "Comment",
        ("jpg",),
        lambda kind, picture: saved(kind, picture, comment="seen at noon"),
        _comment,
    ),
    Field(
        "ICC profile",
        ("png", "jpg", "webp", "tiff"),
        lambda kind, picture: saved(kind, picture, icc_profile=PROFILE),
        _profile,
    ),
    Field("cICP of Display P3", ("png",), _put_cicp, _cicp),
)
