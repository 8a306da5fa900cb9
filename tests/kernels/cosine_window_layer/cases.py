"""Swin V2's layer in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.window_layer.op import flops
from tests.kernels.rows import (
    Case,
    Formula,
    Tensors,
    grow,
    matrices_that_keep_variance,
    refusals,
    weights_of,
)


def layer(
    name: str,
    size: tuple[int, int, int],
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
        "norm1": (channels,),
        "fc1": (hidden, channels),
        "fc2": (channels, hidden),
        "norm2": (channels,),
    }
    return Case(
        name,
        "cosine_window_layer",
        {
            "x": (*size, channels),
            "bias_table": ((2 * window - 1) ** 2, heads),
            "cosine_scale": (heads,),
            **weights_of(matrices),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("x",),
        prepare=prepared,
        result="x",
        composed=True,
    )


def prepared(drawn: Tensors) -> Tensors:
    """Scales of cosines around 10, as Swin V2 begins."""
    return {**matrices_that_keep_variance(drawn), "cosine_scale": drawn["cosine_scale"] + 10}


SMALL = [
    layer("cosine-layer", (1, 4, 6), 4, 6, window=2, shift=1),
]
AWKWARD = [
    layer("cosine-layer-head-dim-10", (1, 16, 24), 60, 120, window=8, heads=6, shift=4),
    layer("cosine-layer-49-tokens", (2, 14, 7), 12, 5, window=7, shift=3),
    layer("cosine-layer-three-channels", (1, 4, 8), 3, 7, heads=3),
    layer("cosine-layer-no-batch", (0, 8, 4), 2, 2),
    layer("cosine-layer-1x1", (1, 1, 1), 18, 2, window=1, shift=0),
]
FLOPS = {  # of the small cases, by hand
    "cosine-layer": 2 * 24 * (4 * 12 + 2 * 4 * 4 + 4 * 4 + 2 * 4 * 6),
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 60, 120, 8),
        2 * 4096 * (4 * 60 * 60 + 2 * 60 * 120 + 2 * 64 * 60),
        "four products and the attention's two",
    ),
]
REFUSALS = refusals(
    SMALL[0],
    ({"cosine_scale": grow(0)}, ValueError, "cosine_scale must have the shape (heads,) = (2)"),
    ({"shift": 2}, ValueError, "shift must be from 0 to window_size - 1, 1, got 2"),
)
