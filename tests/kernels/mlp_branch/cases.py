"""The MLP with its norm and skip in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.mlp_branch.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def mlp(name: str, batch: int, height: int, width: int, channels: int, hidden: int) -> Case:
    modules = {"norm": (channels,), "fc1": (hidden, channels), "fc2": (channels, hidden)}
    return Case(
        name,
        "mlp_branch",
        {"x": (batch, height, width, channels), **weights_of(modules)},
        {},
        ("x",),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
        bfloat16_products=True,
    )


SMALL = [
    mlp("mlp", 1, 2, 3, 4, 5),
]
AWKWARD = [
    mlp("mlp-swinir", 1, 9, 15, 60, 120),
    mlp("mlp-several-groups", 2, 37, 31, 18, 36),
    mlp("mlp-few-channels", 2, 5, 13, 3, 40),
    mlp("mlp-no-batch", 0, 2, 3, 4, 5),
    mlp("mlp-1x1", 1, 1, 1, 17, 33),
]
FLOPS = {  # of the small cases, by hand
    "mlp": 2 * 6 * 2 * 4 * 5,
}
FORMULAS = [
    Formula(flops(1, 64, 64, 60, 120), 2 * 4096 * 2 * 60 * 120, "two products"),
]
