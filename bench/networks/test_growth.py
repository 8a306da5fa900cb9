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
from bench.networks.workloads import with_weights_in_use
from bench.workloads import SEED

CONTINUOUS = ", continuous"  # with HIIF-L in place of the pixel-shuffle
NETWORKS = ("hiet_swinir", "hiet_swinir" + CONTINUOUS, "hiet_srformer", "hiet_mambairv2")
SIDES = {"quick": (32,), "full": (64, 128, 256, 512, 1024, 2048)}
# The largest side on a CPU, where a row beyond takes one to five minutes.
LARGEST = {"hiet_swinir" + CONTINUOUS: 512, "hiet_srformer": 1024, "hiet_mambairv2": 512}
SECONDS = 1.0  # of a row's rounds together; at least one
MOST_ROUNDS = 9
WARMED = 256  # up to this side a first call warms up; beyond, one takes long enough to stand alone
CHECKED = 64  # up to this side the picture is compared with the reference's


@pytest.mark.sides(SIDES)
@pytest.mark.parametrize("network", NETWORKS)
def test_growth(network: str, side: int, benchmark, enter) -> None:
    """One square image, x4, by what a user gets; the same weights at all sizes."""
    if machine.device().type == "cpu" and side > LARGEST.get(network, side):
        pytest.skip("takes minutes on a CPU")
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
