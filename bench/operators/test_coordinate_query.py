"""Coordinate query (HIIF-L's decoder): a whole picture, and random positions as in training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench.contenders import COMPILERS, REFERENCE, Contender, kernels_of, unless
from bench.workloads import Workload, table

# HIIF-L: three levels, width 64, four heads, one attention. HIIF: the published decoder.
HIIF_L = {"levels": 3, "heads": 4, "attentions": 1}
HIIF = {"levels": 6, "heads": 16, "attentions": 2}
GRIDS = {
    "quick": {"24x16 to 96x64": {"lr": (16, 24), "size": (64, 96)}},
    "full": {"120x68 to 324x184 (x2.7)": {"lr": (68, 120), "size": (184, 324)}},
}
# The reference takes 12 s and 4 GB at x4: in one dtype, it leaves the full run its time.
WHOLE_X4 = {"full": {"320x180 to 1280x720": {"lr": (180, 320), "size": (720, 1280)}}}
WIDE = {
    "full": {
        "HIIF 80x45 to 320x180": {
            "lr": (45, 80),
            "size": (180, 320),
            "width": 256,
            "preset": HIIF,
        }
    }
}
POINTS = {
    "quick": {"B2 16x16 Q512": {"batch": 2, "side": 16, "queries": 512}},
    "full": {"B2 64x64 Q4096": {"batch": 2, "side": 64, "queries": 4096}},
}
WHOLE_STEP = {"full": {"B16 64x64 Q4096": {"batch": 16, "side": 64, "queries": 4096}}}


def decoder_weights(
    generator: torch.Generator, width: int, preset: dict[str, int]
) -> dict[str, Tensor]:
    """Weights of a decoder in use: matrices that keep the variance, norms around one."""
    weights = {}
    for name, shape in c2d_kernels.coordinate_query_weight_shapes(width, **preset).items():
        value = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * value
        elif len(shape) == 2:
            value = value / shape[1] ** 0.5
        else:
            value = 0.1 * value
        weights[name] = value
    return weights


def split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The operator's arguments by name, and the weights mapping."""
    named = {name: value for name, value in tensors.items() if "." not in name}
    return named, {name: value for name, value in tensors.items() if "." in name}


def grid(
    lr: tuple[int, int], size: tuple[int, int], width: int = 64, preset: dict[str, int] = HIIF_L
) -> dict[str, object]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "features": torch.randn(1, *lr, width, generator=generator, dtype=torch.float64),
            "image": torch.rand(1, *lr, 3, generator=generator, dtype=torch.float64),
            **decoder_weights(generator, width, preset),
        }

    def query(tensors: dict[str, Tensor]) -> Tensor:
        named, weights = split(tensors)
        return c2d_kernels.coordinate_query(**named, weights=weights, size=size, **preset)

    return {
        "function": query,
        "tensors": tensors,
        "half": frozenset({"features", "image"}),
        "constants": frozenset({"image"}),
    }


def points(batch: int, side: int, queries: int, width: int = 64) -> dict[str, object]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        shape = (batch, side, side)
        # On a lattice of 1/32 LR pixel, shifted by half a step: float32 holds these coordinates
        # exactly, and none lies where rounding could flip a digit (float64 would then disagree).
        steps = torch.randint(0, 32 * side, (batch, queries, 2), generator=generator).double()
        scale = 1 + 3 * torch.rand(batch, 1, generator=generator, dtype=torch.float64)
        return {
            "features": torch.randn(*shape, width, generator=generator, dtype=torch.float64),
            "image": torch.rand(*shape, 3, generator=generator, dtype=torch.float64),
            "coords": (2 * steps + 1) / (32 * side) - 1,
            "cell": (2 / (side * scale)).expand(batch, 2).contiguous(),
            **decoder_weights(generator, width, HIIF_L),
        }

    def query(tensors: dict[str, Tensor]) -> Tensor:
        named, weights = split(tensors)
        return c2d_kernels.coordinate_query(**named, weights=weights, **HIIF_L)

    return {
        "function": query,
        "tensors": tensors,
        "half": frozenset({"features", "image"}),
        "constants": frozenset({"image", "coords", "cell"}),
    }


def large(workload: Workload) -> str | None:
    whole = WHOLE_X4["full"] | WIDE["full"] | WHOLE_STEP["full"]
    return "torch.compile runs the smaller shapes only" if workload.shape in whole else None


@pytest.mark.race(
    workloads=[
        *table("coordinate_query", GRIDS, grid, directions=("forward",)),
        *table("coordinate_query", WHOLE_X4, grid, (torch.float32,), ("forward",)),
        *table("coordinate_query", WIDE, grid, (torch.float32,), ("forward",)),
        *table("coordinate_query", POINTS, points, directions=("forward+backward",)),
        *table("coordinate_query", WHOLE_STEP, points, (torch.float32,), ("forward+backward",)),
    ],
    contenders=[
        REFERENCE,
        *kernels_of("coordinate_query"),
        *(unless(compiler, large) for compiler in COMPILERS),
    ],
)
def test_coordinate_query(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
