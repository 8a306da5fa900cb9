"""The MLP of SwinIR's layers with its norm and skip, in one piece."""

from __future__ import annotations

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import MLP, NORM, layer, race
from bench.workloads import Workload


@race("mlp_branch", layer(c2d_kernels.mlp_branch, {"norm": NORM, **MLP}))
def test_mlp_branch(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
