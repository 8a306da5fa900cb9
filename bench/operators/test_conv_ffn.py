"""SRFormer's feed-forward in one piece."""

from __future__ import annotations

from torch import Tensor

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import HIDDEN, MLP, NORM, layer, race
from bench.workloads import Workload


def conv_ffn(**tensors: object) -> Tensor:
    return c2d_kernels.conv_ffn(**tensors, norm_first=True)


@race("conv_ffn", layer(conv_ffn, {"norm": NORM, "dwconv": (HIDDEN, 1, 5, 5), **MLP}))
def test_conv_ffn(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
