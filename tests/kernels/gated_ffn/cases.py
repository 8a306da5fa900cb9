"""The gated feed-forward in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.gated_ffn.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def gated(
    name: str, batch: int, height: int, width: int, channels: int, gated: int, side: int = 3
) -> Case:
    modules = {"norm": (channels,), "fc1": (2 * gated, channels), "gate_norm": (gated,)}
    modules |= {"dwconv": (gated, 1, side, side), "fc2": (channels, gated)}
    return Case(
        name,
        "gated_ffn",
        {"x": (batch, height, width, channels), **weights_of(modules)},
        {},
        ("x",),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
    )


SMALL = [
    gated("gated", 1, 3, 4, 4, 3),
    gated("gated-5x5", 1, 3, 4, 4, 3, side=5),
]
AWKWARD = [
    gated("gated-dat", 1, 37, 130, 60, 60),
    gated("gated-mambairv2", 1, 37, 130, 48, 48, side=5),
    gated("gated-one-row", 1, 1, 260, 3, 4),
    gated("gated-one-column", 2, 35, 1, 5, 2),
    gated("gated-no-batch", 0, 3, 4, 4, 3),
    gated("gated-1x1", 1, 1, 1, 4, 35),
    gated("gated-5x5-1x1", 1, 1, 1, 4, 35, side=5),
    gated("gated-5x5-one-column", 2, 35, 1, 5, 2, side=5),
]
FLOPS = {  # of the small cases, by hand
    "gated": 2 * 12 * 3 * (3 * 4 + 9),
    "gated-5x5": 2 * 12 * 3 * (3 * 4 + 25),
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 60, 60, 3),
        2 * 4096 * (60 * 120 + 60 * 60 + 9 * 60),
        "two products and 3x3",
    ),
]
