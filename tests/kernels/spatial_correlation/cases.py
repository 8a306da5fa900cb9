"""Spatial correlation in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.spatial_correlation.op import flops
from tests.kernels.rows import B, Case, Export, Formula, columns, grow, refusals, rows


def spatial(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    window: tuple[int, int] = (4, 2),
    base: int = 2,
    heads: int = 2,
) -> Case:
    shape = (batch, height, width, channels)
    cell = (window[0] // min(base, window[0])) * (window[1] // min(base, window[1]))
    return Case(
        name,
        "spatial_correlation",
        {
            "q": shape,
            "v": shape,
            "weight": (1, cell),
            "weight_bias": (1,),
            "bias_table": ((2 * window[0] - 1) * (2 * window[1] - 1), heads),
        },
        {"window_size": window, "base_window": base, "num_heads": heads},
        ("q", "v"),
        result="q",
        windowed=True,
    )


SMALL = [
    spatial("spatial", 1, 4, 4, 4),
]
AWKWARD = [
    spatial("spatial-rectangle", 2, 8, 6, 10, window=(8, 2), base=2),
    spatial("spatial-small-window", 1, 4, 8, 6, window=(2, 4), base=8, heads=3),
    spatial("spatial-no-batch", 0, 4, 4, 4),
    spatial("spatial-1x1", 1, 1, 1, 4, window=(1, 1), base=8),
]
FLOPS = {  # of the small cases, by hand
    "spatial": 2 * 16 * 4 * (1 + 2 * 4),
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 30, 8, 8),
        2 * 4096 * 30 + 2 * 2 * 4096 * 64 * 30,
        "p, q p^T and the map with p",
    ),
]
MAP = {0: B, 1: 4 * rows, 2: 4 * columns}
EXPORTS = [
    Export(
        "spatial",
        {"q": {**MAP, 2: 2 * columns}, "v": {**MAP, 2: 2 * columns}},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
]
REFUSALS = refusals(
    SMALL[0],
    ({"window_size": 3}, ValueError, "q must have a height and width that are mul"),
    ({"base_window": 3}, ValueError, "base_window must divide the height of the w"),
    ({"num_heads": 3}, ValueError, "num_heads must divide the channels of q, 4, g"),
    ({"weight": grow(1)}, ValueError, "weight must have the shape (1, R_y R_x) = "),
    ({"weight_bias": grow(0)}, ValueError, "weight_bias must have the shape (1,) "),
    ({"bias_table": grow(0)}, ValueError, "bias_table must have the shape ((2h-1)"),
)
