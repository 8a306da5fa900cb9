"""Common part of the benchmarks of whole layers: sizes, weights, and the race, at inference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.contenders import COMPILERS, REFERENCE, kernels_of
from bench.workloads import table

CHANNELS, HIDDEN = 60, 120  # of the light networks
Sizes = dict[str, dict[str, dict[str, int]]]
SIZES: Sizes = {
    "quick": {"64x48": {"height": 48, "width": 64}},
    "full": {"320x184": {"height": 184, "width": 320}},
}
IN_WINDOWS_OF_16 = {**SIZES, "full": {"320x192": {"height": 192, "width": 320}}}
MLP = {"fc1": (HIDDEN, CHANNELS), "fc2": (CHANNELS, HIDDEN)}
SQUARE, NORM = (CHANNELS, CHANNELS), (CHANNELS,)


def layer(
    call: Callable[..., Tensor],
    modules: dict[str, tuple[int, ...]],
    more: dict[str, tuple[int, ...]] | None = None,
) -> Callable[..., dict[str, object]]:
    """Makes workloads of `call(x, weights, **more)`; matrices keep the variance of what they get.

    Names with dots are weights; `more` are tensors besides, a None in their shape standing for the
    map's (B, H, W).
    """
    shapes = {f"{module}.weight": shape for module, shape in modules.items()}
    shapes |= {f"{module}.bias": shape[:1] for module, shape in modules.items()}

    def make(height: int, width: int) -> dict[str, object]:
        sizes = {"x": (1, height, width, CHANNELS), **shapes}
        for name, shape in (more or {}).items():
            sizes[name] = (1, height, width, *shape[1:]) if shape[0] is None else shape

        def tensors(generator: torch.Generator) -> dict[str, Tensor]:
            drawn = {
                name: torch.randn(shape, generator=generator, dtype=torch.float64)
                for name, shape in sizes.items()
            }
            for name, value in drawn.items():
                if "." in name and value.dim() > 1:
                    value /= value[0].numel() ** 0.5
            return drawn

        def function(tensors: dict[str, Tensor]) -> Tensor:
            weights = {name: value for name, value in tensors.items() if "." in name}
            rest = {name: value for name, value in tensors.items() if "." not in name}
            return call(**rest, weights=weights)

        return {"function": function, "tensors": tensors, "half": frozenset({"x", *(more or {})})}

    return make


def race(operator: str, make: Callable[..., dict[str, object]], sizes: Sizes = SIZES):
    """Forward only: the backwards of two of them are timed in the networks' training steps."""
    return pytest.mark.race(
        workloads=table(operator, sizes, make, directions=("forward",)),
        contenders=[REFERENCE, *kernels_of(operator), *COMPILERS],
    )
