"""The native library `_native.so`: loading it, and why it is not there when it is not."""

from __future__ import annotations

from pathlib import Path

import torch

PATH = Path(__file__).with_name("_native.so")


def _load() -> str | None:
    """Load the library; the reason if that fails, which must not keep anyone from importing us."""
    if not PATH.exists():
        return (
            f"the native library {PATH.name} was not built (a pure-Python install): "
            "reinstall with a C++ compiler present"
        )
    try:
        torch.ops.load_library(str(PATH))
    except Exception as error:  # whatever the loader raises, it is a reason and no more
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return f"the native library {PATH.name} did not load: {first_line}"
    return None


missing: str | None = _load()


def build_info() -> str:
    """What the library was built with and the instruction set in use, or why it is absent."""
    return missing if missing is not None else torch.ops.c2d_native.build_info()
