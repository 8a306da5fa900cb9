"""Compiles every source against the headers of other versions of torch than the one installed here.

    python -m csrc.torch_headers 2.10.0 2.11.0

The library promises to build with each torch from 2.10 on, and a name that only newer headers know
would break that unseen. Commands are those of setup.py, as far as the front end: nothing is linked
or kept. Sources that include no torch are left out, and CUDA's where there is no nvcc.

Headers come from the wheel for macOS, which is the smallest (79 MB) and has the same ones, and stay
in the user's cache. A folder named instead of a version is taken as an unpacked wheel.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import setup  # noqa: E402

WHEEL = ["--only-binary=:all:", "--platform=macosx_11_0_arm64", "--python-version=3.12"]


def headers(version: str) -> Path:
    """The folder torch of a wheel, of which only include/ is kept."""
    if Path(version).is_dir():
        return Path(version).resolve() / "torch"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "c2d-isr"
    folder = cache / f"torch-{version}"
    if folder.is_dir():
        return folder / "torch"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        setup.say(f"downloading the headers of torch {version}, once, into {cache}")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir"]
        command = [*pip, *WHEEL, "-d", unfinished, f"torch=={version}"]
        if subprocess.run(command).returncode != 0:
            setup.fail(f"the headers of torch {version} were not downloaded; pip says why above")
        (wheel,) = Path(unfinished).glob("*.whl")
        unpacked = Path(unfinished) / "unpacked"
        with zipfile.ZipFile(wheel) as opened:
            wanted = [name for name in opened.namelist() if name.startswith("torch/include/")]
            opened.extractall(unpacked, wanted)
        try:
            unpacked.rename(folder)
        except OSError:  # another process extracted it first
            if not folder.is_dir():
                raise
    return folder / "torch"


def check(torch: Path) -> dict[Path, str]:
    """The compiler's complaints by source that includes torch: empty if it compiles."""
    includes = str(torch / "include")
    steps = [step for step in setup.make_plan(torch).steps if includes in step.compiler]

    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def complaint(step: setup.Step) -> str:
            (source,) = step.inputs
            # PTX is the least that nvcc makes of one architecture; it parses the host code as well.
            # Into a file: with --threads=2 nvcc 13.0 hangs when it writes to /dev/null.
            ptx = ["-ptx", "-o", f"{folder}/{'-'.join(source.parts)}.ptx"]
            front_end = ptx if source.suffix == ".cu" else ["-fsyntax-only"]
            command = [*step.compiler, *front_end, str(source)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode == 0:
                return ""
            return done.stdout + done.stderr or f"{source}: the compiler ended in an error\n"

        complaints = pool.map(complaint, steps)
        return {step.inputs[0]: said for step, said in zip(steps, complaints, strict=True)}


def main(versions: list[str]) -> int:
    os.environ["TORCH_CUDA_ARCH_LIST"] = "9.0"  # -ptx takes one
    nvcc, reason = setup.find_nvcc()
    if nvcc is None:
        setup.say(f"CUDA sources are not checked: {reason}")
    failed = False
    for version in versions:
        torch = headers(version)
        found = check(torch)
        if not found:
            setup.fail(f"no source was checked: {setup.make_plan(torch).note}")
        broken = {str(source): said for source, said in found.items() if said}
        print("".join(broken.values()), end="", flush=True)
        setup.say(
            f"torch {version}: {len(broken)} of {len(found)} sources do not compile against its "
            f"headers: {', '.join(broken)}"
            if broken
            else f"torch {version}: all sources that include its headers ({len(found)}) compile"
        )
        failed = failed or bool(broken)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
