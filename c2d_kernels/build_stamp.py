"""Which sources a native library was built from: setup.py writes it beside the library.

It imports nothing of the package, since setup.py reads it before there is a torch.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

_SUFFIXES = (".cpp", ".cu", ".cuh", ".h")


def of_sources(folder: Path) -> str:
    """A hash of the C++ and CUDA sources in csrc, their names and contents."""
    found = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
