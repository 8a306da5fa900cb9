"""SRFormer-L's attention with its norm, projection and skip in one piece."""

from __future__ import annotations

from torch import Tensor

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import CHANNELS, IN_WINDOWS_OF_16, NORM, SQUARE, layer, race
from bench.workloads import Workload


def attention_branch(**tensors: object) -> Tensor:
    return c2d_kernels.attention_branch(**tensors, window_size=16, num_heads=6, shift=8)


@race(
    "attention_branch",
    layer(
        attention_branch,
        {"norm": NORM, "q": SQUARE, "kv": (CHANNELS // 2, CHANNELS), "proj": SQUARE},
        {"bias_table": (225, 6)},
    ),
    IN_WINDOWS_OF_16,
)
def test_attention_branch(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
