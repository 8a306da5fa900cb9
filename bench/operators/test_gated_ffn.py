"""DAT's gated feed-forward in one piece."""

from __future__ import annotations

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import CHANNELS, HIDDEN, NORM, layer, race
from bench.workloads import Workload

GATED = HIDDEN // 2
MODULES = {"norm": NORM, "fc1": (HIDDEN, CHANNELS), "gate_norm": (GATED,)}
MODULES |= {"dwconv": (GATED, 1, 3, 3), "fc2": (CHANNELS, GATED)}


@race("gated_ffn", layer(c2d_kernels.gated_ffn, MODULES))
def test_gated_ffn(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
