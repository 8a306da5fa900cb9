"""Builds the native library with sanitizers and runs the operators' tests on it.

    python -m csrc.sanitize                       address and undefined behaviour
    python -m csrc.sanitize undefined -k conv_ffn one sanitizer, with arguments for pytest

The first finding ends the run with the sanitizer's report. All of it lies in build/sanitize, also a
copy of the packages and their tests, so the installed library stays as it is. CUDA and Triton are
left out: a sanitizer's runtime breaks their compilers. Leaks are not looked for: Python and torch
keep memory until the process ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import setup  # noqa: E402

TREE = ROOT / "build" / "sanitize" / "tree"
COPIED = ("bench", "c2d_kernels", "c2d_models", "csrc", "tests")
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:protect_shadow_gap=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
}


def build(sanitizers: str) -> Path:
    """The library that watches itself."""
    os.environ |= {"C2D_SANITIZE": sanitizers, "C2D_BUILD_CUDA": "0"}
    setup.BUILD = Path("build/sanitize/native")
    plan = setup.make_plan()
    if not plan.native:
        setup.fail(plan.note)
    (ROOT / setup.BUILD).mkdir(parents=True, exist_ok=True)
    ninja = setup.find_ninja()
    if ninja:
        setup.run_with_ninja(ninja, plan.steps)
    else:
        setup.run_without_ninja(plan.steps)
    return ROOT / plan.steps[-1].output


def runtimes(sanitizers: str) -> str:
    """The libraries to load before Python: libstdc++ too, or no exception would be seen thrown."""
    compiler = setup.find_compiler()
    names = [*(RUNTIMES[name] for name in sanitizers.split(",")), "libstdc++.so"]
    paths = [
        subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in names
    ]
    return " ".join(done.stdout.strip() for done in paths)


def main(arguments: list[str]) -> int:
    """Build, copy, test; returns pytest's exit code."""
    sanitizers = "address,undefined"
    if arguments and not arguments[0].startswith("-"):
        sanitizers, *arguments = arguments
    if unknown := set(sanitizers.split(",")) - RUNTIMES.keys():
        setup.fail(f"there is no runtime for {', '.join(unknown)}; use {', '.join(RUNTIMES)}")
    library = build(sanitizers)
    for name in COPIED:
        shutil.copytree(ROOT / name, TREE / name, dirs_exist_ok=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, TREE)
    shutil.copy(library, TREE / "c2d_kernels" / "_native.so")
    environment = {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": runtimes(sanitizers),
        "PYTHONPATH": str(TREE),
    }
    for_gpus = ["--ignore-glob=*cuda*", "--ignore-glob=*triton*"]
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-x", *for_gpus, *arguments]
    return subprocess.run(command, cwd=TREE, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
