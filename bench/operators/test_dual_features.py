"""HiT-SR's dual feature extraction in one piece."""

from __future__ import annotations

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import CHANNELS, SQUARE, layer, race
from bench.workloads import Workload

LOCAL = 12  # channels of the branch that looks around, in HiT


@race(
    "dual_features",
    layer(
        c2d_kernels.dual_features,
        {
            "local": (LOCAL, CHANNELS),
            "conv": (LOCAL, LOCAL, 3, 3),
            "expand": (CHANNELS, LOCAL),
            "linear": SQUARE,
        },
    ),
)
def test_dual_features(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
