"""A picture's metadata, and how each container holds it.

EXIF is kept as its own bytes: only what enlarging makes untrue is changed in place (orientation,
width, height, the thumbnail), so that a camera's private notes keep their offsets.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from .tiff_tags import (
    EXIF_IFD,
    GPS_IFD,
    INTEROP_IFD,
    Directory,
    Entry,
    TagError,
    TagReader,
    build_tree,
)

_LARGEST_BLOCK = 2**24  # bytes: of text, EXIF or XMP
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_PHOTOSHOP_HEAD = b"Photoshop 3.0\0"
DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 33432, 18246, 18249, *range(40091, 40096))
"""Tags of a TIFF's main directory that tell of the picture: description, make, artist ..."""
RESOLUTION_TAGS = (282, 283, 296)
_TEXT_TAGS = {"Description": 270, "Software": 305, "Author": 315, "Copyright": 33432}
_USER_COMMENT = 37510


@dataclass
class Metadata:
    """Metadata handed from the file read to the file written.

    Attributes:
        exif: the EXIF block from its TIFF header on, or None.
        xmp: the XMP packet, or None.
        iptc: IPTC's records (IIM), or None.
        texts: (keyword, text) of PNG; a JPEG's comments have the keyword "Comment".
        resolution: pixels per millimetre (x, y) as the file states them, or None.
        cicp: PNG's four bytes that name a colour space by numbers, or None.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    texts: list[tuple[str, str]] = field(default_factory=list)
    resolution: tuple[float, float] | None = None
    cicp: bytes | None = None

    def enlarged(self, height: int, width: int, turned: bool = False) -> Metadata:
        """The same for an upright picture of another size."""
        resolution = self.resolution
        if turned and resolution is not None:
            resolution = resolution[::-1]
        return replace(
            self,
            exif=None if self.exif is None else _true_exif(self.exif, height, width),
            xmp=None if self.xmp is None else _true_xmp(self.xmp, height, width),
            resolution=resolution,
        )

    def exif_with_texts(self) -> bytes | None:
        """The EXIF block, or one made of `texts` for containers that have no place for those."""
        if self.exif is not None:
            return self.exif
        main: dict[int, Entry] = {}
        inner: dict[int, Entry] = {}
        for keyword, text in self.texts:
            if keyword in _TEXT_TAGS:
                data = text.encode() + b"\0"
                main[_TEXT_TAGS[keyword]] = Entry(2, len(data), data)
            elif keyword in ("parameters", "Comment", "UserComment"):
                data = b"UNICODE\0" + text.encode("utf-16-be", "replace")
                inner.setdefault(_USER_COMMENT, Entry(7, len(data), data))
        return _exif_block(main, {EXIF_IFD: inner}) if main or inner else None


def read_metadata(kind: str, file: BinaryIO) -> Metadata:
    """The file's metadata, of the kinds whose containers are read here, without damaged parts."""
    readers = {"jpg": _read_jpeg, "png": _read_png, "webp": _read_webp, "tiff": _read_tiff}
    found = Metadata()
    if kind in readers:
        readers[kind](file, found)
    if found.exif is not None and found.resolution is None:
        found.resolution = _exif_resolution(found.exif)
    return found


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(marker, payload) of a JPEG's segments before its first scan."""
    file.seek(2)
    while len(head := file.read(2)) == 2 and head[0] == 0xFF:
        while head[1] == 0xFF:
            head = b"\xff" + file.read(1)
            if len(head) < 2:
                return
        if head[1] in (0xD9, 0xDA):
            return
        if head[1] == 1 or 0xD0 <= head[1] <= 0xD8:
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        payload = file.read(max(length, 0))
        if length < 0 or len(payload) < length:
            return
        yield head[1], payload


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of a PNG's chunks; the pixels' data is skipped and empty."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name in (b"IDAT", b"fdAT") or length > _LARGEST_BLOCK:
            file.seek(length + 4, io.SEEK_CUR)
            yield name, b""
        else:
            data = file.read(length)
            file.seek(4, io.SEEK_CUR)
            if len(data) < length:
                return
            yield name, data
        if name == b"IEND":
            return


def webp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of a WebP's chunks; of pixels only the first 24 bytes."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], "little")
        wanted = length if name in (b"EXIF", b"XMP ") and length < _LARGEST_BLOCK else 24
        data = file.read(min(length, wanted))
        file.seek(length + length % 2 - len(data), io.SEEK_CUR)
        yield name, data


def _read_jpeg(file: BinaryIO, found: Metadata) -> None:
    resources = b""
    for marker, data in jpeg_segments(file):
        if marker == 0xE0 and data[:5] == b"JFIF\0" and len(data) >= 12:
            unit, x, y = struct.unpack(">BHH", data[7:12])
            per_mm = {1: 1 / 25.4, 2: 0.1}.get(unit)
            if per_mm and x and y:
                found.resolution = (x * per_mm, y * per_mm)
        elif marker == 0xE1 and data[:6] == b"Exif\0\0" and found.exif is None:
            found.exif = _sound_exif(data[6:])
        elif marker == 0xE1 and data.startswith(_XMP_HEAD) and found.xmp is None:
            found.xmp = data[len(_XMP_HEAD) :]
        elif marker == 0xED and data.startswith(_PHOTOSHOP_HEAD):
            resources += data[len(_PHOTOSHOP_HEAD) :]
        elif marker == 0xFE:
            found.texts.append(("Comment", _decoded(data.rstrip(b"\0"))))
    found.iptc = _iptc_resource(resources)


def _read_png(file: BinaryIO, found: Metadata) -> None:
    for name, data in png_chunks(file):
        if name == b"eXIf" and found.exif is None:
            found.exif = _sound_exif(data.removeprefix(b"Exif\0\0"))
        elif name == b"pHYs" and len(data) == 9:
            x, y, unit = struct.unpack(">IIB", data)
            if unit == 1 and x and y:
                found.resolution = (x / 1000, y / 1000)
        elif name == b"cICP" and len(data) == 4:
            found.cicp = data
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            text = _png_text(name, data)
            if text is None:
                continue
            keyword, value = text
            if keyword == "XML:com.adobe.xmp":
                found.xmp = value.encode()
            elif keyword.lower() == "raw profile type iptc":
                found.iptc = _raw_profile(value) or found.iptc
            elif keyword.lower() == "raw profile type xmp":
                found.xmp = found.xmp or _raw_bytes(value)
            elif keyword.lower() in ("raw profile type exif", "raw profile type app1"):
                raw = (_raw_bytes(value) or b"").removeprefix(b"Exif\0\0")
                found.exif = found.exif or _sound_exif(raw)
            else:
                found.texts.append((keyword, value))


def _read_webp(file: BinaryIO, found: Metadata) -> None:
    for name, data in webp_chunks(file):
        if name == b"EXIF":
            found.exif = _sound_exif(data.removeprefix(b"Exif\0\0"))
        elif name == b"XMP ":
            found.xmp = data


def _read_tiff(file: BinaryIO, found: Metadata) -> None:
    """The first directory's fields; what describes the picture becomes an EXIF block."""
    reader = TagReader(file)
    directory = next(reader.chain(), Directory(reader.order))
    for tag, name in ((700, "xmp"), (33723, "iptc")):
        if tag in directory.entries:
            setattr(found, name, directory.entries[tag].data)
    x, y = directory.rational(282), directory.rational(283)
    per_mm = {2: 1 / 25.4, 3: 0.1}.get(directory.integer(296, 2))
    if per_mm and x and y:
        found.resolution = (x * per_mm, y * per_mm)
    main = {tag: directory.entries[tag] for tag in DESCRIPTIVE if tag in directory.entries}
    children = {}
    for tag in (EXIF_IFD, GPS_IFD):
        for child in reader.children(directory, tag)[:1]:
            children[tag] = {t: e for t, e in child.entries.items() if t != INTEROP_IFD}
    if children or any(tag in main for tag in DESCRIPTIVE):
        found.exif = _exif_block(main, children, reader.order)


def _exif_block(
    main: dict[int, Entry], children: dict[int, dict[int, Entry]], order: str = ">"
) -> bytes:
    magic = b"MM\0*\0\0\0\x08" if order == ">" else b"II*\0\x08\0\0\0"
    return magic + build_tree(order, main, children, 8)


def _sound_exif(data: bytes) -> bytes | None:
    """The block if its first directory can be read."""
    try:
        next(TagReader(io.BytesIO(data)).chain())
    except (TagError, StopIteration):
        return None
    return data


def _exif_resolution(data: bytes) -> tuple[float, float] | None:
    directory = next(TagReader(io.BytesIO(data)).chain())
    x, y = directory.rational(282), directory.rational(283)
    per_mm = {2: 1 / 25.4, 3: 0.1}.get(directory.integer(296, 2))
    return (x * per_mm, y * per_mm) if per_mm and x and y else None


def exif_orientation(data: bytes | None) -> int:
    """The orientation of an EXIF block, 1 where it has none."""
    if data is None:
        return 1
    return next(TagReader(io.BytesIO(data)).chain()).integer(274, 1)


def _true_exif(data: bytes, height: int, width: int) -> bytes:
    """Orientation 1, the new size, and no thumbnail (it would show the old picture)."""
    block, reader = bytearray(data), TagReader(io.BytesIO(data))
    main = next(reader.chain())
    new = {274: 1, 256: width, 257: height, 40962: width, 40963: height}
    for directory in (main, *reader.children(main, EXIF_IFD)):
        for tag, value in new.items():
            entry = directory.entries.get(tag)
            if entry is None or entry.type not in (3, 4) or entry.count != 1:
                continue
            if entry.type == 3 and value > 65535:
                # A short's field has room for a long: its type is two bytes after the tag.
                struct.pack_into(f"{reader.order}H", block, entry.at - 6, 4)
                struct.pack_into(f"{reader.order}I", block, entry.at, value)
            else:
                code = "H" if entry.type == 3 else "I"
                struct.pack_into(reader.order + code, block, entry.at, value)
    directories = list(_chain_or_first(reader, main))
    if len(directories) > 1:
        for entry_tag, length_tag in ((513, 514),):
            start = directories[1].integer(entry_tag)
            length = directories[1].integer(length_tag)
            if 0 < start < start + length <= len(block):
                block[start : start + length] = bytes(length)
                if start + length == len(block):
                    del block[start:]
    if not reader.big and main.end + 4 <= len(block):
        block[main.end : main.end + 4] = bytes(4)
    return bytes(block)


def _chain_or_first(reader: TagReader, main: Directory) -> Iterator[Directory]:
    try:
        yield from reader.chain()
    except TagError:
        yield main


def _true_xmp(packet: bytes, height: int, width: int) -> bytes:
    """As `_true_exif`, for properties written as attributes or as elements."""
    new = {
        b"tiff:Orientation": 1,
        b"tiff:ImageWidth": width,
        b"tiff:ImageLength": height,
        b"exif:PixelXDimension": width,
        b"exif:PixelYDimension": height,
    }
    for name, value in new.items():
        number = b"%d" % value
        for before, after in ((rb'\s*=\s*["\']', rb'["\']'), (rb"\s*>\s*", rb"\s*<")):
            pattern = rb"(" + name + before + rb")\d+(" + after + rb")"
            packet = re.sub(pattern, rb"\g<1>" + number + rb"\g<2>", packet)
    return re.sub(rb"<(xmp|xap):Thumbnails\b.*?</\1:Thumbnails>", b"", packet, flags=re.DOTALL)


def _png_text(name: bytes, data: bytes) -> tuple[str, str] | None:
    """(keyword, text) of a tEXt, zTXt or iTXt chunk; None for a broken one."""
    keyword, zero, rest = data.partition(b"\0")
    if not keyword or not zero:
        return None
    if name == b"iTXt":
        if len(rest) < 2:
            return None
        packed, rest = rest[0], rest[2:]
        _, _, rest = rest.partition(b"\0")
        _, _, rest = rest.partition(b"\0")
    else:
        packed = name == b"zTXt"
        rest = rest[1:] if packed else rest
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, _LARGEST_BLOCK)
        except zlib.error:
            return None
    text = _decoded(rest) if name == b"iTXt" else rest.decode("latin-1")
    return keyword.decode("latin-1"), text


def _decoded(data: bytes) -> str:
    """UTF-8 where it is that, else Latin-1, in which any bytes mean something."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _iptc_resource(resources: bytes) -> bytes | None:
    """IPTC's records among Photoshop's image resources (number 0x0404)."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and len(resources) > at + 12:
        number = int.from_bytes(resources[at + 4 : at + 6], "big")
        name = resources[at + 6] + 1
        start = at + 6 + name + name % 2
        length = int.from_bytes(resources[start : start + 4], "big")
        if number == 0x0404:
            return resources[start + 4 : start + 4 + length] or None
        at = start + 4 + length + length % 2
    return None


def _raw_bytes(text: str) -> bytes | None:
    """The bytes of ImageMagick's "Raw profile type": a name, a length, hexadecimal digits."""
    parts = text.split(maxsplit=2)
    try:
        return bytes.fromhex("".join(parts[2].split()))
    except (IndexError, ValueError):
        return None


def _raw_profile(text: str) -> bytes | None:
    """IPTC's records from a raw profile, with or without Photoshop's wrapping."""
    data = (_raw_bytes(text) or b"").removeprefix(_PHOTOSHOP_HEAD)
    return (_iptc_resource(data) if data[:4] == b"8BIM" else data) or None
