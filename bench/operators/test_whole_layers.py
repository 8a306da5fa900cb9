"""Layers in one piece, at inference: SwinIR-L's, and the parts of HiT's, HiET's and SRFormer's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench.contenders import COMPILERS, REFERENCE, Contender, kernels_of
from bench.workloads import Workload, table

CHANNELS, HIDDEN, LOCAL = 60, 120, 12  # of the light networks; LOCAL in HiT's feature extraction
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


def window_layer(**tensors: object) -> Tensor:
    return c2d_kernels.window_layer(**tensors, window_size=8, num_heads=6, shift=4)


def attention_branch(**tensors: object) -> Tensor:
    return c2d_kernels.attention_branch(**tensors, window_size=16, num_heads=6, shift=8)


def res_post_norm(part: Tensor, **tensors: object) -> Tensor:
    return c2d_kernels.res_post_norm(parts=[part], **tensors)


def conv_ffn(**tensors: object) -> Tensor:
    return c2d_kernels.conv_ffn(**tensors, norm_first=True)


def race(operator: str, make: Callable[..., dict[str, object]], sizes: Sizes = SIZES):
    """Forward only: the backwards of two of them are timed in the networks' training steps."""
    return pytest.mark.race(
        workloads=table(operator, sizes, make, directions=("forward",)),
        contenders=[REFERENCE, *kernels_of(operator), *COMPILERS],
    )


@race(
    "window_layer",
    layer(
        window_layer,
        {"norm1": NORM, "qkv": (3 * CHANNELS, CHANNELS), "proj": SQUARE, "norm2": NORM, **MLP},
        {"bias_table": (225, 6)},
    ),
)
def test_window_layer(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@race(
    "attention_branch",
    layer(
        attention_branch,
        {"norm": NORM, "q": SQUARE, "kv": (CHANNELS // 2, CHANNELS), "proj": SQUARE},
        {"bias_table": (225, 6)},
    ),
    IN_WINDOWS_OF_16,
)
def test_attention_branch(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@race(
    "res_post_norm",
    layer(
        res_post_norm,
        {"proj": SQUARE, "norm1": NORM, "norm2": NORM, **MLP},
        {"part": (None, CHANNELS)},
    ),
)
def test_res_post_norm(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@race("conv_ffn", layer(conv_ffn, {"norm": NORM, "dwconv": (HIDDEN, 1, 5, 5), **MLP}))
def test_conv_ffn(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@race(
    "dual_features",
    layer(
        c2d_kernels.dual_features,
        {
            "local": (LOCAL, CHANNELS),
            "conv": (LOCAL, LOCAL, 3, 3),
            "expand": (CHANNELS, LOCAL),
            "linear": SQUARE,
        },
    ),
)
def test_dual_features(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
