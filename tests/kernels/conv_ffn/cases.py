"""The feed-forward with a convolution in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.conv_ffn.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def feed_forward(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    *,
    norm_first: bool = True,
) -> Case:
    modules = {"norm": (channels,), "fc1": (hidden, channels), "fc2": (channels, hidden)}
    modules |= {"dwconv": (hidden, 1, 5, 5)}
    return Case(
        name,
        "conv_ffn",
        {"x": (batch, height, width, channels), **weights_of(modules)},
        {"norm_first": norm_first},
        ("x",),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
        bfloat16_products=True,
    )


SMALL = [
    feed_forward("conv-ffn", 1, 3, 4, 4, 5),
]
AWKWARD = [
    feed_forward("conv-ffn-srformer", 1, 37, 126, 60, 120),
    feed_forward("conv-ffn-norm-last", 2, 9, 7, 18, 36, norm_first=False),
    feed_forward("conv-ffn-one-row", 1, 1, 260, 3, 4),
    feed_forward("conv-ffn-one-column", 1, 67, 1, 5, 3, norm_first=False),
    feed_forward("conv-ffn-no-batch", 0, 3, 4, 4, 5),
    feed_forward("conv-ffn-1x1", 1, 1, 1, 4, 70),
]
FLOPS = {  # of the small cases, by hand
    "conv-ffn": 2 * 12 * 5 * (2 * 4 + 25),
}
FORMULAS = [
    Formula(flops(1, 64, 64, 60, 120), 2 * 4096 * (2 * 60 * 120 + 25 * 120), "MLP and 5x5"),
]
