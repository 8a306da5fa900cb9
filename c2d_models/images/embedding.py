"""Metadata put into a file while libvips writes it: JPEG, PNG and WebP pass through, TIFF is ended.

libvips would invent a resolution and parts of EXIF, and has no place for texts; it is asked for the
pixels and the colour profile alone.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from .metadata import DESCRIPTIVE, RESOLUTION_TAGS, Metadata
from .tiff_tags import EXIF_IFD, GPS_IFD, Entry, TagReader, build_tree

_SEGMENT = 65533  # bytes that a JPEG segment holds


class Embedder:
    """A file to write to that adds `metadata` to what goes through it.

    Arguments:
        file: where the bytes go.
        format: "jpg", "png" or "webp".
    """

    def __init__(
        self, file: BinaryIO, format: str, metadata: Metadata, height: int, width: int
    ) -> None:
        self._file, self._metadata = file, metadata
        self._height, self._width = height, width
        self._opening = {"jpg": self._jpeg, "png": self._png, "webp": self._webp}[format]
        self._head: bytes | None = b""
        self._tail = b""
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Take a piece; -1 after an error of the file, which is kept in `error`."""
        try:
            if self._head is not None:
                self._head += data
                changed = self._opening(self._head)
                if changed is not None:
                    self._put(changed)
                    self._head = None
            else:
                self._put(data)
        except OSError as error:
            self.error = error
            return -1
        return len(data)

    def end(self) -> None:
        """Write what comes after the picture."""
        self._put((self._head or b"") + self._tail)

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _jpeg(self, head: bytes) -> bytes | None:
        """JFIF's segment with the true density in place of libvips', if it wrote one, then ours."""
        if len(head) < 20:
            return None
        meta = self._metadata
        unit, x, y = 0, 1, 1
        if meta.resolution is not None:
            unit, (x, y) = 1, (min(max(round(n * 25.4), 1), 65535) for n in meta.resolution)
        out = head[:2] + _segment(0xE0, struct.pack(">5sHBHHBB", b"JFIF", 0x0101, unit, x, y, 0, 0))
        rest = head[20:] if head[2:4] == b"\xff\xe0" else head[2:]
        comments = [text for keyword, text in meta.texts if keyword == "Comment"]
        others = Metadata(meta.exif, texts=[t for t in meta.texts if t[0] != "Comment"])
        exif = others.exif_with_texts()
        if exif is not None:
            out += _segment(0xE1, b"Exif\0\0" + exif)
        if meta.xmp is not None:
            out += _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + meta.xmp)
        if meta.iptc is not None:
            padding = bytes(len(meta.iptc) % 2)
            resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(meta.iptc))
            out += _segment(0xED, b"Photoshop 3.0\0" + resource + meta.iptc + padding)
        for text in comments:
            out += _segment(0xFE, text.encode())
        return out + rest

    def _png(self, head: bytes) -> bytes | None:
        """Our chunks before the first of the pixels; libvips' resolution is left out."""
        at, kept = 8, head[:8]
        while True:
            if len(head) < at + 8:
                return None
            name = head[at + 4 : at + 8]
            end = at + 12 + int.from_bytes(head[at : at + 4], "big")
            if name in (b"IDAT", b"PLTE"):
                break
            if len(head) < end:
                return None
            if name != b"pHYs":
                kept += head[at:end]
            at = end
        meta, chunks = self._metadata, b""
        if meta.cicp is not None:
            chunks += _chunk(b"cICP", meta.cicp)
        if meta.resolution is not None:
            x, y = (max(round(n * 1000), 1) for n in meta.resolution)
            chunks += _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
        if meta.exif is not None:
            chunks += _chunk(b"eXIf", meta.exif)
        if meta.xmp is not None:
            chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + meta.xmp)
        if meta.iptc is not None:
            raw = f"\niptc\n{len(meta.iptc):8}\n{meta.iptc.hex()}\n".encode()
            chunks += _chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(raw))
        for keyword, text in meta.texts:
            chunks += _text_chunk(keyword, text)
        return kept + chunks + head[at:]

    def _webp(self, head: bytes) -> bytes | None:
        """The extended header's flags; EXIF and XMP follow the picture."""
        if len(head) < 30:
            return None
        exif, xmp = self._metadata.exif_with_texts(), self._metadata.xmp
        if exif is not None:
            self._tail += _riff(b"EXIF", exif)
        if xmp is not None:
            self._tail += _riff(b"XMP ", xmp)
        if not self._tail:
            return head
        flags = 8 * (exif is not None) + 4 * (xmp is not None)
        if head[12:16] == b"VP8X":
            start, rest = head[12:20] + bytes([head[20] | flags]) + head[21:30], head[30:]
        else:
            # In a lossless picture's header bit 28 says whether it has alpha.
            lossless = head[12:16] == b"VP8L"
            alpha = 0x10 if lossless and head[24] & 0x10 else 0
            canvas = b"".join((n - 1).to_bytes(3, "little") for n in (self._width, self._height))
            start, rest = _riff(b"VP8X", bytes([flags | alpha, 0, 0, 0]) + canvas), head[12:]
        size = int.from_bytes(head[4:8], "little") + len(self._tail)
        size += len(start) + len(rest) - (len(head) - 12)
        return b"RIFF" + size.to_bytes(4, "little") + b"WEBP" + start + rest


def end_tiff(path: bytes | str | Path, metadata: Metadata) -> None:
    """Give a finished TIFF the metadata: a new main directory at the end of the file."""
    with open(path, "r+b") as file:
        reader = TagReader(file)
        if reader.big:
            _end_big_tiff(file, reader, metadata)
            return
        order = reader.order
        entries = dict(next(reader.chain()).entries)
        for tag in RESOLUTION_TAGS:
            entries.pop(tag, None)
        if metadata.resolution is not None:
            for tag, value in zip((282, 283), metadata.resolution, strict=True):
                data = struct.pack(f"{order}2I", round(value * 25.4 * 1000), 1000)
                entries[tag] = Entry(5, 1, data)
            entries[296] = Entry(3, 1, struct.pack(f"{order}H", 2))
        if metadata.xmp is not None:
            entries[700] = Entry(1, len(metadata.xmp), metadata.xmp)
        if metadata.iptc is not None:
            entries[33723] = Entry(7, len(metadata.iptc), metadata.iptc)
        children: dict[int, dict[int, Entry]] = {}
        exif = metadata.exif_with_texts()
        if exif is not None:
            main, children = _exif_parts(exif, order)
            entries |= main
        at = file.seek(0, os.SEEK_END)
        at += file.write(bytes(at % 2))
        file.write(build_tree(order, entries, children, at))
        file.seek(4)
        file.write(struct.pack(f"{order}I", at))


def _end_big_tiff(file: BinaryIO, reader: TagReader, metadata: Metadata) -> None:
    """A file beyond 4 GiB keeps its directory; only the resolution is made true, in place."""
    entries = next(reader.chain()).entries
    order = reader.order
    resolution = metadata.resolution or (1 / 25.4, 1 / 25.4)
    for tag, value in zip((282, 283), resolution, strict=True):
        file.seek(entries[tag].at)
        file.write(struct.pack(f"{order}2I", round(value * 25.4 * 1000), 1000))
    file.seek(entries[296].at)
    file.write(struct.pack(f"{order}H", 1 if metadata.resolution is None else 2))


def _exif_parts(exif: bytes, order: str) -> tuple[dict[int, Entry], dict[int, dict[int, Entry]]]:
    """The descriptive tags and the two inner directories of an EXIF block, in that byte order."""
    reader = TagReader(io.BytesIO(exif))
    directory = next(reader.chain())
    main = {tag: e for tag, e in directory.entries.items() if tag in DESCRIPTIVE}
    children = {
        tag: dict(child.entries)
        for tag in (EXIF_IFD, GPS_IFD)
        for child in reader.children(directory, tag)[:1]
    }
    for entries in children.values():
        entries.pop(40965, None)  # the directory of interoperability is not carried over
    if reader.order != order:
        for entries in (main, *children.values()):
            for tag, entry in entries.items():
                entries[tag] = _swapped(entry)
    return main, children


def _swapped(entry: Entry) -> Entry:
    """A value in the other byte order."""
    word = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}.get(entry.type, 1)
    data = b"".join(entry.data[at : at + word][::-1] for at in range(0, len(entry.data), word))
    return Entry(entry.type, entry.count, data)


def _segment(marker: int, payload: bytes) -> bytes:
    """A JPEG segment; nothing if the payload is longer than one holds."""
    if len(payload) > _SEGMENT:
        return b""
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def _chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def _text_chunk(keyword: str, text: str) -> bytes:
    """tEXt where Latin-1 has all the letters, else iTXt."""
    key = keyword.encode("latin-1", "replace")[:79] or b"Comment"
    try:
        return _chunk(b"tEXt", key + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))


def _riff(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
