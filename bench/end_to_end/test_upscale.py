"""`c2d upscale` on a photograph, as typed: start of Python, reading, enlarging, writing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.timing import Pairs
from c2d_models.images import image_file

PHOTO = Path(__file__).parents[2] / "examples" / "photo.png"
ROUNDS = {"quick": 1, "full": 3}


def upscale(target: Path, scale: str, backend: str) -> float:
    """Seconds of the command in a process of its own."""
    command = [sys.executable, "-m", "c2d_models.cli", "upscale", str(PHOTO), "-o", str(target)]
    command += ["--scale", scale, "--overwrite"]
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env=os.environ | {"C2D_BACKEND": backend},
        timeout=600,
    )
    return time.perf_counter() - start


@pytest.mark.parametrize("scale", ["4", "2.7"])
def test_upscale(scale: str, tmp_path: Path, benchmark, bench_size: str, enter) -> None:
    """The shipped models against themselves on the reference, in turns."""
    if bench_size == "quick" and scale != "4" and not benchmark.disabled:
        pytest.skip("quick runs time x4 only")
    ours, plain = tmp_path / "ours.png", tmp_path / "plain.png"
    upscale(ours, scale, "auto")
    upscale(plain, scale, "reference")
    pictures = (image_file.read(path).pixels.astype(int) for path in (ours, plain))
    levels = np.abs(np.subtract(*pictures)).max()
    assert levels <= 1, f"the pictures differ by {levels} of 255 levels"
    if benchmark.disabled:
        benchmark.pedantic(lambda: levels)
        return
    reference: list[float] = []
    benchmark.pedantic(
        lambda: upscale(ours, scale, "auto"),
        setup=lambda: reference.append(upscale(plain, scale, "reference")),
        rounds=ROUNDS[bench_size],
    )
    pairs = Pairs(list(benchmark.stats.stats.data), reference)
    enter("end to end", benchmark, command=f"c2d upscale --scale {scale}", **pairs.summary())
