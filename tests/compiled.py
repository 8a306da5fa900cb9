"""C++ that only the tests need, compiled once into Python modules.

A module is kept in tests/_build under a name made from its sources, compiler and Python, so a
changed source is compiled again and a stale file is never loaded. Where it cannot be compiled, the
test that asks for it is skipped with the reason.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_BUILD_FOLDER = Path(__file__).resolve().parent / "_build"
_FLAGS = ["-O2", "-std=c++20", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"]


def _compiler() -> list[str]:
    """The compiler's command, or a skip that says what is missing."""
    wanted = os.environ.get("CXX")
    command = shlex.split(wanted) if wanted else ["c++"]
    candidates = [command, *([] if wanted else [["g++"], ["clang++"]])]
    for candidate in candidates:
        if shutil.which(candidate[0]):
            return candidate
    pytest.skip(f"no C++ compiler for the tests' own code: {' or '.join(c[0] for c in candidates)}")


def _include_folders() -> list[str]:
    try:
        import pybind11
    except ImportError:
        pytest.skip("pybind11 is not installed, so the tests' C++ cannot be compiled")
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").is_file():
        pytest.skip(f"Python.h is not in {python}, so the tests' C++ cannot be compiled")
    return [python, pybind11.get_include()]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in `folder`; the lock goes with its holder, however that ends."""
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(source: str, headers: Sequence[str]) -> Path:
    """Path of the compiled module, compiled now if it is not there yet."""
    compiler, includes = _compiler(), _include_folders()
    flags = [*_FLAGS, *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
    texts = [(_ROOT / path).read_text(encoding="utf-8") for path in (source, *headers)]
    identity = [compiler, includes, flags, sys.version, texts]
    name = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    _BUILD_FOLDER.mkdir(exist_ok=True)
    (_BUILD_FOLDER / ".gitignore").write_text("*\n", encoding="utf-8")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    stem = Path(source).stem
    library = _BUILD_FOLDER / f"{stem}_{name}{suffix}"
    with _alone(_BUILD_FOLDER):  # pytest-xdist: one worker compiles, the others wait for it
        if library.exists():
            return library
        unfinished = library.with_suffix(f".{os.getpid()}.tmp")
        command = [*compiler, *flags, *(f"-I{folder}" for folder in includes)]
        command += [str(_ROOT / source), "-o", str(unfinished)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            pytest.fail(f"{source} does not compile:\n{result.stderr}", pytrace=False)
        for stale in _BUILD_FOLDER.glob(f"{stem}_*{suffix}"):  # this Python's, of older sources
            stale.unlink()
        os.replace(unfinished, library)
    return library


@functools.cache
def module(name: str, source: str, headers: tuple[str, ...] = ()) -> ModuleType:
    """The pybind11 module `name` that `source` defines; paths from the project's root.

    `headers` are the project's own headers it includes: a change in one compiles it again.
    """
    specification = importlib.util.spec_from_file_location(name, _build(source, headers))
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded
