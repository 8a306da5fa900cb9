"""`c2d upscale` on a photograph, as typed: start of Python, reading, enlarging, writing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.budget import Budget
from bench.timing import Pairs
from c2d_models.images import image_file

PHOTO = Path(__file__).parents[2] / "examples" / "photo.png"
ROUNDS = {"quick": 1, "full": 3}
ROW_SECONDS = {"quick": 30.0, "full": 90.0}
TEST_SECONDS = 600.0


def upscale(target: Path, scale: str, backend: str, budget: Budget) -> float:
    """Seconds of the command in a process of its own; OverBudget if it has to be ended."""
    command = [sys.executable, "-m", "c2d_models.cli", "upscale", str(PHOTO), "-o", str(target)]
    command += ["--scale", scale, "--overwrite"]
    start = time.perf_counter()
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            env=os.environ | {"C2D_BACKEND": backend},
            timeout=budget.left,
        )
    except subprocess.TimeoutExpired:
        budget.need(0, f"the command on the backend {backend}")
        raise
    return time.perf_counter() - start


@pytest.mark.parametrize("scale", ["4", "2.7"])
def test_upscale(scale: str, tmp_path: Path, benchmark, bench_size: str, enter, budget_of) -> None:
    """The shipped models against themselves on the reference, in turns."""
    if bench_size == "quick" and scale != "4" and not benchmark.disabled:
        pytest.skip("quick runs time x4 only")
    command = f"c2d upscale --scale {scale}"
    seconds = TEST_SECONDS if benchmark.disabled else ROW_SECONDS[bench_size]
    with budget_of(command, seconds) as budget:
        ours, plain = tmp_path / "ours.png", tmp_path / "plain.png"
        pair = upscale(ours, scale, "auto", budget) + upscale(plain, scale, "reference", budget)
        pictures = (image_file.read(path).pixels.astype(int) for path in (ours, plain))
        levels = np.abs(np.subtract(*pictures)).max()
        assert levels <= 1, f"the pictures differ by {levels} of 255 levels"
        if benchmark.disabled:
            benchmark.pedantic(lambda: levels)
            return
        rounds = ROUNDS[bench_size]
        budget.need(rounds * pair, f"{rounds} rounds of {pair:.2g} s")
        reference: list[float] = []
        benchmark.pedantic(
            lambda: upscale(ours, scale, "auto", budget),
            setup=lambda: reference.append(upscale(plain, scale, "reference", budget)),
            rounds=rounds,
        )
        pairs = Pairs(list(benchmark.stats.stats.data), reference)
        enter("end to end", benchmark, command=command, **pairs.summary())
