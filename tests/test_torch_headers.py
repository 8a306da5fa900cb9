"""The check that no source needs newer headers of torch than the library promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the library is made on Linux"),
    pytest.mark.skipif(
        not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on PATH"
    ),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one source that includes torch."""
    for file in ("setup.py", "csrc/torch_headers.py", "csrc/nvcc_report.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "csrc/operator").mkdir()
    (tmp_path / "csrc/operator/host.cpp").write_text("#include <torch/headeronly/version.h>\n")
    return tmp_path


def run(tree: Path, *versions: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csrc.torch_headers", *map(str, versions)],
        cwd=tree,
        env={**os.environ, "C2D_BUILD_CUDA": "0", **environment},
        capture_output=True,
        text=True,
    )


def test_a_name_that_headers_lack_is_an_error(tree: Path) -> None:
    found = run(tree, TORCH.parent)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "all sources that include its headers (1) compile" in found.stdout
    with (tree / "csrc/operator/host.cpp").open("a") as source:
        source.write("int newer() { return C2D_NAME_OF_A_NEWER_TORCH(0); }\n")
    found = run(tree, TORCH.parent)
    assert found.returncode == 1
    assert "C2D_NAME_OF_A_NEWER_TORCH" in found.stdout
    assert (
        "1 of 1 sources do not compile against its headers: csrc/operator/host.cpp" in found.stdout
    )


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_cuda_sources_count(tree: Path) -> None:
    kernel = "__global__ void kernel() {}\nint host() { return C2D_NAME_OF_A_NEWER_TORCH(0); }\n"
    (tree / "csrc/operator/kernel.cu").write_text(kernel)
    found = run(tree, TORCH.parent, C2D_BUILD_CUDA="1")
    assert found.returncode == 1
    assert (
        "1 of 2 sources do not compile against its headers: csrc/operator/kernel.cu" in found.stdout
    )
    found = run(tree, TORCH.parent)
    assert found.returncode == 0
    assert "CUDA sources are not checked: C2D_BUILD_CUDA=0" in found.stdout


def test_headers_are_downloaded_once(tree: Path) -> None:
    """By a pip that makes the wheel, then by one that fails: the second run needs none."""
    header = (TORCH / "include/torch/headeronly/version.h").read_text()
    stand_in = tree / "pip/__main__.py"
    stand_in.parent.mkdir()
    wheel = tree / "torch.whl"
    with zipfile.ZipFile(wheel, "w") as written:
        written.writestr("torch/include/torch/headeronly/version.h", header)
        written.writestr("torch/lib/large.so", "not kept")
    (tree / "pip/__init__.py").touch()
    stand_in.write_text(
        "import shutil, sys\n"
        "assert sys.argv[-1] == 'torch==2.10.0'\n"
        f"shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('-d') + 1])\n"
    )
    cache = {"XDG_CACHE_HOME": str(tree / "cache")}
    found = run(tree, "2.10.0", **cache)
    assert found.returncode == 0, found.stdout + found.stderr
    kept = [path for path in (tree / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in kept] == ["version.h"]
    stand_in.write_text("raise SystemExit('no network')\n")
    assert run(tree, "2.10.0", **cache).returncode == 0
    found = run(tree, "2.11.0", **cache)
    assert found.returncode == 1
    assert "the headers of torch 2.11.0 were not downloaded" in found.stderr
