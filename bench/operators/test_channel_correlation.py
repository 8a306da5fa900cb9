"""Channel correlation (HiT-SR): our kernels and torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench.contenders import COMPILERS, REFERENCE, Contender, kernels_of
from bench.workloads import Workload, normal, table

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


def channel_correlation(
    height: int, width: int, window: int, batch: int = 1, channels: int = 30
) -> dict[str, object]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        shape = (batch, height, width, channels)
        return {name: normal(generator, *shape) for name in ("q", "v")}

    def correlation(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.channel_correlation(**tensors, window_size=window)

    return {"function": correlation, "tensors": tensors, "half": frozenset({"q", "v"})}


@pytest.mark.race(
    workloads=table("channel_correlation", CHANNEL, channel_correlation),
    contenders=[REFERENCE, *kernels_of("channel_correlation"), *COMPILERS],
)
def test_channel_correlation(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
