"""SwinIR-L's layer in one piece."""

from __future__ import annotations

from torch import Tensor

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import CHANNELS, MLP, NORM, SQUARE, layer, race
from bench.workloads import Workload


def window_layer(**tensors: object) -> Tensor:
    return c2d_kernels.window_layer(**tensors, window_size=8, num_heads=6, shift=4)


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
