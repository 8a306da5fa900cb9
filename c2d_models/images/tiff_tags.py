"""Directories of TIFF files and of EXIF blocks, which are small TIFF files: read and made."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_DIRECTORIES = 4096
_MOST_ENTRIES = 4096
_LARGEST_VALUE = 2**24  # bytes: a profile or an XMP packet, never the picture

SUB_IFDS, EXIF_IFD, GPS_IFD, INTEROP_IFD = 330, 34665, 34853, 40965


class TagError(ValueError):
    """Directories that cannot be followed."""


@dataclass
class Entry:
    """A tag's value: TIFF's type number, how many, and the bytes in the file's order.

    `at` is where the bytes stand in the file.
    """

    type: int
    count: int
    data: bytes
    at: int = 0


@dataclass
class Directory:
    """One IFD. `order` is struct's "<" or ">"; `end` is where the next one's offset stands."""

    order: str
    entries: dict[int, Entry] = field(default_factory=dict)
    end: int = 0

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A tag's whole numbers, or `default` where it is missing or holds something else."""
        entry = self.entries.get(tag)
        if entry is None or entry.type not in _INTEGERS or not entry.data:
            return default
        return struct.unpack(f"{self.order}{entry.count}{_INTEGERS[entry.type]}", entry.data)

    def integer(self, tag: int, default: int = 0) -> int:
        """A tag's first whole number."""
        return self.integers(tag, (default,))[0]

    def rational(self, tag: int) -> float | None:
        """A tag's first fraction, or None."""
        entry = self.entries.get(tag)
        if entry is None or entry.type != 5 or len(entry.data) < 8:
            return None
        above, below = struct.unpack(f"{self.order}2I", entry.data[:8])
        return above / below if below else None


class TagReader:
    """Follows the directories of a file, TIFF or BigTIFF, that starts at its first byte.

    Raises TagError for a file that is not a TIFF or whose offsets lead nowhere.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = self._read(0, 16, exact=False)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        version = struct.unpack(f"{self.order}H", head[2:4])[0] if self.order else 0
        # The raws of Olympus and Panasonic have numbers of their own and are refused before.
        if version not in (42, 43) or len(head) < 8 + 8 * (version == 43):
            raise TagError("this is not a TIFF header")
        self.big = version == 43
        self.first = struct.unpack_from(
            self.order + ("Q" if self.big else "I"), head, 8 if self.big else 4
        )[0]

    def chain(self) -> Iterator[Directory]:
        """The main directories, one per page."""
        seen: set[int] = set()
        offset = self.first
        while offset and offset not in seen and len(seen) < _MOST_DIRECTORIES:
            seen.add(offset)
            directory = self.directory(offset)
            yield directory
            offset = self._integer(directory.end, "Q" if self.big else "I")

    def children(self, directory: Directory, tag: int) -> list[Directory]:
        """Directories that a tag points to; those that lead nowhere are left out."""
        found = []
        for offset in directory.integers(tag)[:64]:
            try:
                found.append(self.directory(offset))
            except TagError:
                continue
        return found

    def directory(self, offset: int) -> Directory:
        """The directory at an offset."""
        count = self._integer(offset, "Q" if self.big else "H")
        if count > _MOST_ENTRIES:
            raise TagError(f"a directory claims {count} entries")
        start = offset + (8 if self.big else 2)
        size, word = (20, 8) if self.big else (12, 4)
        table = self._read(start, size * count)
        directory = Directory(self.order, end=start + size * count)
        for index in range(count):
            at = index * size
            tag, kind = struct.unpack_from(f"{self.order}2H", table, at)
            number = struct.unpack_from(self.order + ("Q" if self.big else "I"), table, at + 4)[0]
            length = _SIZES.get(kind, 0) * number
            where = start + at + 4 + word
            if length > word:
                pointer = table[at + 4 + word : at + 4 + 2 * word]
                where = struct.unpack(self.order + ("Q" if self.big else "I"), pointer)[0]
            if not 0 < length <= _LARGEST_VALUE:
                continue
            try:
                data = self._read(where, length)
            except TagError:
                continue
            directory.entries.setdefault(tag, Entry(kind, number, data, where))
        return directory

    def _integer(self, offset: int, code: str) -> int:
        code = self.order + code
        return struct.unpack(code, self._read(offset, struct.calcsize(code)))[0]

    def _read(self, offset: int, length: int, exact: bool = True) -> bytes:
        try:
            self._file.seek(offset)
            data = self._file.read(length)
        except (OSError, OverflowError, ValueError):
            raise TagError(f"offset {offset} leads nowhere") from None
        if exact and len(data) < length:
            raise TagError(f"the file ends before {offset + length}")
        return data


def build_directory(
    order: str, entries: dict[int, Entry], at: int, next_directory: int = 0
) -> bytes:
    """A classic IFD that will stand at the (even) offset `at`, with its values after it."""
    values = at + 2 + 12 * len(entries) + 4
    table, tail = struct.pack(f"{order}H", len(entries)), b""
    for tag in sorted(entries):
        entry = entries[tag]
        table += struct.pack(f"{order}HHI", tag, entry.type, entry.count)
        if len(entry.data) <= 4:
            table += entry.data.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", values + len(tail))
            tail += entry.data + bytes(len(entry.data) % 2)
    return table + struct.pack(f"{order}I", next_directory) + tail


def build_tree(
    order: str, main: dict[int, Entry], children: dict[int, dict[int, Entry]], at: int
) -> bytes:
    """A directory at offset `at` followed by those that its tags in `children` point to."""
    pointers = {tag: Entry(4, 1, bytes(4)) for tag, entries in children.items() if entries}
    main = {tag: entry for tag, entry in main.items() if tag not in children} | pointers
    length = len(build_directory(order, main, at))
    body = b""
    for tag in pointers:
        where = at + length + len(body)
        body += build_directory(order, children[tag], where)
        main[tag] = Entry(4, 1, struct.pack(f"{order}I", where))
    return build_directory(order, main, at) + body
