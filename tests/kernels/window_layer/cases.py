"""The window layer in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.window_layer.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def layer(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    *,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    matrices = {
        "qkv": (3 * channels, channels),
        "proj": (channels, channels),
        "fc1": (hidden, channels),
        "fc2": (channels, hidden),
        "norm1": (channels,),
        "norm2": (channels,),
    }
    return Case(
        name,
        "window_layer",
        {
            "x": (batch, height, width, channels),
            "bias_table": ((2 * window - 1) ** 2, heads),
            **weights_of(matrices),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("x",),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
        bfloat16_products=True,
    )


SMALL = [
    layer("layer", 1, 4, 6, 4, 6, window=2, shift=1),
]
AWKWARD = [
    layer("layer-head-dim-10", 1, 16, 24, 60, 120, window=8, heads=6, shift=4),
    layer("layer-49-tokens", 2, 14, 7, 12, 5, window=7, shift=3),
    layer("layer-three-channels", 1, 4, 8, 3, 7, heads=3),
    layer("layer-no-batch", 0, 8, 4, 2, 2),
    layer("layer-1x1", 1, 1, 1, 18, 2, window=1, shift=0),
]
FLOPS = {  # of the small cases, by hand
    "layer": 2 * 24 * (4 * 12 + 2 * 4 * 4 + 4 * 4 + 2 * 4 * 6),
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 60, 120, 8),
        2 * 4096 * (60 * 180 + 2 * 64 * 60 + 60 * 60 + 2 * 60 * 120),
        "qkv, attention, projection, MLP",
    ),
]
