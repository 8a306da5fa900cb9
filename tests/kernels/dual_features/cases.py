"""The dual feature extraction in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.dual_features.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def dual(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    *,
    encoding: bool = True,
) -> Case:
    modules = {"local": (hidden, channels), "conv": (hidden, hidden, 3, 3)}
    modules |= {"expand": (channels, hidden), "linear": (channels, channels)}
    places = {"encoding-1": (height, channels), "encoding-2": (width, channels)}
    return Case(
        name,
        "dual_features",
        {
            "x": (batch, height, width, channels),
            **(places if encoding else {}),
            **weights_of(modules),
        },
        {},
        ("x",),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
    )


SMALL = [
    dual("dual", 1, 3, 4, 4, 3),
]
AWKWARD = [
    dual("dual-hiet", 1, 37, 127, 60, 12),
    dual("dual-hit", 2, 9, 7, 18, 4, encoding=False),
    dual("dual-one-row", 1, 1, 260, 5, 1),
    dual("dual-one-column", 1, 67, 1, 3, 2, encoding=False),
    dual("dual-no-batch", 0, 3, 4, 4, 5),
    dual("dual-1x1", 1, 1, 1, 4, 20),
]
FLOPS = {  # of the small cases, by hand
    "dual": 2 * 12 * (4 * 4 + 2 * 4 * 3 + 9 * 9),
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 60, 12),
        2 * 4096 * (60 * 60 + 2 * 60 * 12 + 9 * 12 * 12),
        "two branches, one with a 3x3",
    ),
]
