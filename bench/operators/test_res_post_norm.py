"""The part after the mixing in HiT's and HiET's layers, in one piece."""

from __future__ import annotations

from torch import Tensor

import c2d_kernels
from bench.contenders import Contender
from bench.operators.layers import CHANNELS, MLP, NORM, SQUARE, layer, race
from bench.workloads import Workload


def res_post_norm(part: Tensor, **tensors: object) -> Tensor:
    return c2d_kernels.res_post_norm(parts=[part], **tensors)


@race(
    "res_post_norm",
    layer(
        res_post_norm,
        {"proj": SQUARE, "norm1": NORM, "norm2": NORM, **MLP},
        {"part": (None, CHANNELS)},
    ),
)
def test_res_post_norm(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
