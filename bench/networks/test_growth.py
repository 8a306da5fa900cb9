"""Time and memory of the HiET networks against the size of the image."""

from __future__ import annotations

import gc
import os
import statistics
import time

import pytest
import torch

import c2d_kernels
import c2d_models
from bench import machine
from bench.budget import OverBudget
from bench.networks.workloads import with_weights_in_use
from bench.workloads import SEED

CONTINUOUS = ", continuous"  # with HIIF-L in place of the pixel-shuffle
NETWORKS = ("hiet_swinir", "hiet_swinir" + CONTINUOUS, "hiet_srformer", "hiet_mambairv2")
SIDES = {"quick": (32,), "full": (64, 128, 256, 512, 1024, 2048)}
# The largest side on a CPU, where all rows beyond would make the run a third longer.
LARGEST = {"hiet_swinir" + CONTINUOUS: 512, "hiet_srformer": 1024, "hiet_mambairv2": 512}
SECONDS = 1.0  # of a row's rounds together; at least one
MOST_ROUNDS = 9
WARMED = 256  # up to this side a first call warms up; beyond, one takes long enough to stand alone
ROW_SECONDS = 90.0
CHECKED = 64  # up to this side the picture is compared with the reference's


@pytest.mark.sides(SIDES)
@pytest.mark.parametrize("network", NETWORKS)
def test_growth(network: str, side: int, benchmark, enter, others, budget_of) -> None:
    """One square image, x4, by what a user gets; the same weights at all sizes."""
    with budget_of(f"growth of {network} at {side}²", ROW_SECONDS) as budget:
        if machine.device().type == "cpu" and side > LARGEST.get(network, side):
            raise OverBudget("on a CPU it takes one to five minutes")
        seconds = expected(others("growth"), network, side)
        budget.need(seconds, "one image, by the pixels of a smaller one")
        measure(network, side, benchmark, enter)


def expected(rows: list[dict[str, object]], network: str, side: int) -> float:
    """Seconds of one image at least: those of the last smaller one times the pixels; 0 if none."""
    smaller = [row for row in rows if row["network"] == network and row["side"] < side]
    if not smaller:
        return 0.0
    last = smaller[-1]
    return last["median_ms"] / 1e3 * (side / last["side"]) ** 2


def measure(network: str, side: int, benchmark, enter) -> None:
    """Check and time one image, and enter the row."""
    generator = torch.Generator().manual_seed(SEED)
    name, continuous, _ = network.partition(CONTINUOUS)
    net = c2d_models.create(name, None if continuous else 4)
    net = with_weights_in_use(net, generator).prepare()
    net = net.to(machine.device())
    image = torch.rand(1, 3, side, side, generator=generator).to(machine.device())
    size = {"size": (4 * side, 4 * side)} if continuous else {}

    def enlarge() -> torch.Tensor:
        with torch.no_grad(), c2d_kernels.backend("auto"):
            return net(image, **size)

    if side <= CHECKED:
        with torch.no_grad(), c2d_kernels.backend("reference"):
            expected = net(image, **size)
        torch.testing.assert_close(enlarge(), expected, rtol=0, atol=1e-3 * expected.abs().max())
        del expected
    if benchmark.disabled:
        benchmark.pedantic(enlarge)
        return
    gc.collect()
    peaks, busy = [], []

    def measured() -> None:
        before = os.times().user
        peak, picture = machine.peak_memory(enlarge)
        busy.append(os.times().user - before)
        assert picture.shape == (1, 3, 4 * side, 4 * side) and bool(torch.isfinite(picture).all())
        peaks.append(peak)

    start = time.perf_counter()
    if side <= WARMED:
        measured()
    rounds = int(SECONDS / (time.perf_counter() - start)) if side <= WARMED else 1
    benchmark.pedantic(measured, rounds=max(1, min(MOST_ROUNDS, rounds)))
    enter(
        "growth",
        benchmark,
        network=network,
        side=side,
        median_ms=1e3 * benchmark.stats.stats.median,
        user_s=statistics.median(busy),
        peak_MiB=None if peaks[0] is None else max(peaks) / 2**20,
    )
