"""HiT-SR's dual feature extraction by the native CPU kernel (csrc/dual_features)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel


def fold(features: torch.dtype, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Arguments of `run` for maps of a dtype: both entries' weights, and the kernel's matrices."""
    compute = torch.promote_types(features, torch.float32)
    local, local_bias, conv, conv_bias, expand, expand_bias, linear, linear_bias = (
        weight.to(compute) for weight in weights
    )
    matrices = [
        native.bias_column(local, local_bias),
        native.bias_column(linear, linear_bias),
        conv.permute(2, 3, 0, 1).reshape(-1, conv.shape[1]).contiguous(),
        conv_bias[None],
        native.bias_column(expand, expand_bias),
    ]
    return torch.cat([local, linear]), matrices


def run(
    x: Tensor, rows: Tensor | None, columns: Tensor | None, folded: tuple[Tensor, list[Tensor]]
) -> Tensor:
    """The forward."""
    entry, matrices = folded
    by_row = by_column = None
    if rows is not None and columns is not None:
        # The products are linear: the position encoding is multiplied once, by row and by column.
        # In float64: BLAS sums in an order that depends on the number of threads, which float32
        # would show.
        by_row, by_column = (
            (entry.double() @ place.double().t()).to(entry.dtype) for place in (rows, columns)
        )
    op = torch.ops.c2d_native.dual_features.default
    return op(x.to(entry.dtype), *matrices, by_row, by_column).to(x.dtype)


def _forward(
    x: Tensor, rows: Tensor | None, columns: Tensor | None, weights: Sequence[Tensor]
) -> Tensor:
    return run(x, rows, columns, fold(x.dtype, weights))


dual_features = Kernel(
    "dual_features", "cpu", native.refusal, _forward, native_ops=("dual_features",)
)
