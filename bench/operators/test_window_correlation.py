"""Channel and spatial correlation (HiT-SR): our kernels, torch.compile, and the map in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench import materialised
from bench.contenders import COMPILERS, REFERENCE, Contender, kernels_of, peer
from bench.workloads import Workload, table

# HiET-SwinIR: q and v of 30 channels, windows 64, 32 and 8; 320x180 is not a multiple of 64.
CHANNEL = {
    "quick": {
        "96x80 w32": {"height": 80, "width": 96, "window": 32},
        "96x80 w64": {"height": 80, "width": 96, "window": 64},
    },
    "full": {
        "320x180 w8": {"height": 180, "width": 320, "window": 8},
        "320x180 w64": {"height": 180, "width": 320, "window": 64},
        "64x64 B4 w64": {"height": 64, "width": 64, "window": 64, "batch": 4},
    },
}
# HiT-SIR: q and v of 30 channels in 6 heads, windows up to 64 over a base of 8.
SPATIAL = {
    "quick": {"64x64 w32": {"height": 64, "width": 64, "window": 32}},
    "full": {
        "320x192 w8": {"height": 192, "width": 320, "window": 8},
        "320x192 w64": {"height": 192, "width": 320, "window": 64},
    },
}


def channel_correlation(
    height: int, width: int, window: int, batch: int = 1, channels: int = 30
) -> dict[str, object]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        shape = (batch, height, width, channels)
        return {name: normal(generator, *shape) for name in ("q", "v")}

    def correlation(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.channel_correlation(**tensors, window_size=window)

    return {"function": correlation, "tensors": tensors, "half": frozenset({"q", "v"})}


def spatial_correlation(
    height: int, width: int, window: int, base: int = 8, channels: int = 30, heads: int = 6
) -> dict[str, object]:
    cell = max(window // base, 1) ** 2  # tokens that one cell of the base window stands for

    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "q": normal(generator, 1, height, width, channels),
            "v": normal(generator, 1, height, width, channels),
            "weight": normal(generator, 1, cell) / cell**0.5,
            "weight_bias": 0.1 * normal(generator, 1),
            "bias_table": normal(generator, (2 * window - 1) ** 2, heads),
        }

    sizes = {"window_size": window, "base_window": base, "num_heads": heads}

    def correlation(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.spatial_correlation(**tensors, **sizes)

    def with_the_map(tensors: dict[str, Tensor]) -> Tensor:
        return materialised.spatial_correlation(**tensors, **sizes)

    return {
        "function": correlation,
        "tensors": tensors,
        "half": frozenset({"q", "v"}),
        "peers": {"materialised": lambda tensors, backward: with_the_map},
    }


def in_half(workload: Workload) -> str | None:
    """The formula is written for one type; our kernels' half rows have the reference to beat."""
    half = workload.dtype != torch.float32
    return "the materialised formula runs in float32 rows only" if half else None


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.race(
    workloads=table("channel_correlation", CHANNEL, channel_correlation),
    contenders=[REFERENCE, *kernels_of("channel_correlation"), *COMPILERS],
)
def test_channel_correlation(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@pytest.mark.race(
    workloads=table("spatial_correlation", SPATIAL, spatial_correlation),
    contenders=[
        REFERENCE,
        *kernels_of("spatial_correlation"),
        peer("materialised", absent=in_half),
        *COMPILERS,
    ],
)
def test_spatial_correlation(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
