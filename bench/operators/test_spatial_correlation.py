"""Spatial correlation (HiT-SR): our kernels, torch.compile, and the map in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench import materialised
from bench.contenders import COMPILERS, REFERENCE, Contender, kernels_of, peer
from bench.workloads import Workload, normal, table

# HiT-SIR: q and v of 30 channels in 6 heads, windows up to 64 over a base of 8.
SPATIAL = {
    "quick": {"64x64 w32": {"height": 64, "width": 64, "window": 32}},
    "full": {
        "320x192 w8": {"height": 192, "width": 320, "window": 8},
        "320x192 w64": {"height": 192, "width": 320, "window": 64},
    },
}


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
