"""Swin V2's whole layer, as Swin2SR has it, in one piece."""

from __future__ import annotations

from torch import Tensor

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import CHANNELS, MLP, NORM, SQUARE, layer, race
from bench.workloads import Workload

HEADS, WINDOW = 6, 8


def cosine_window_layer(bias_table: Tensor, **tensors: object) -> Tensor:
    return c2d_kernels.cosine_window_layer(
        bias_table=bias_table, window_size=WINDOW, num_heads=HEADS, shift=WINDOW // 2, **tensors
    )


@race(
    "cosine_window_layer",
    layer(
        cosine_window_layer,
        {"qkv": (3 * CHANNELS, CHANNELS), "proj": SQUARE, "norm1": NORM, "norm2": NORM, **MLP},
        {"bias_table": ((2 * WINDOW - 1) ** 2, HEADS), "cosine_scale": (HEADS,)},
    ),
)
def test_cosine_window_layer(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
