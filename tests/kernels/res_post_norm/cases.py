"""The res-post-norm layer in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.res_post_norm.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def post_norm(
    name: str, batch: int, height: int, width: int, channels: int, hidden: int | None, part: int
) -> Case:
    """Without an MLP if `hidden` is None."""
    modules = {"proj": (channels, 2 * part), "norm1": (channels,)}
    if hidden is not None:
        modules |= {"fc1": (hidden, channels), "fc2": (channels, hidden), "norm2": (channels,)}
    return Case(
        name,
        "res_post_norm",
        {
            "x": (batch, height, width, channels),
            "parts-1": (batch, height, width, part),
            "parts-2": (batch, height, width, part),
            **weights_of(modules),
        },
        {},
        ("x", "parts-1", "parts-2"),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
        bfloat16_products=True,
    )


SMALL = [
    post_norm("post-norm", 1, 2, 3, 4, 5, part=3),
    post_norm("post-norm-no-mlp", 1, 2, 3, 4, None, part=3),
]
AWKWARD = [
    post_norm("post-norm-hiet", 1, 9, 15, 60, 120, part=30),
    post_norm("post-norm-few-channels", 2, 5, 13, 3, 40, part=1),
    post_norm("post-norm-no-batch", 0, 2, 3, 4, 5, part=2),
    post_norm("post-norm-1x1", 1, 1, 1, 17, 33, part=19),
    post_norm("post-norm-no-mlp-hiet", 1, 9, 15, 60, None, part=30),
    post_norm("post-norm-no-mlp-few-channels", 2, 5, 13, 3, None, part=1),
    post_norm("post-norm-no-mlp-no-batch", 0, 2, 3, 4, None, part=2),
    post_norm("post-norm-no-mlp-1x1", 1, 1, 1, 17, None, part=19),
]
FLOPS = {  # of the small cases, by hand
    "post-norm": 2 * 6 * 4 * (6 + 2 * 5),
    "post-norm-no-mlp": 2 * 6 * 4 * 6,
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 60, 60, 120),
        2 * 4096 * (60 * 60 + 2 * 60 * 120),
        "projection and MLP",
    ),
]
