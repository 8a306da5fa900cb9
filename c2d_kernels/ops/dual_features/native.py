"""HiT-SR's dual feature extraction by the native CPU kernel (csrc/dual_features)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ...dispatch import Kernel


def _forward(
    x: Tensor, rows: Tensor | None, columns: Tensor | None, weights: Sequence[Tensor]
) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    local, local_bias, conv, conv_bias, expand, expand_bias, linear, linear_bias = (
        weight.to(compute) for weight in weights
    )
    by_row = by_column = None
    if rows is not None:
        # Products are linear: what is added to x adds to them what they make of it.
        entry = torch.cat([local, linear])
        by_row, by_column = (entry @ place.to(compute).t() for place in (rows, columns))
    out = torch.ops.c2d_native.dual_features.default(
        x.to(compute),
        native.bias_column(local, local_bias),
        native.bias_column(linear, linear_bias),
        conv.permute(2, 3, 0, 1).reshape(-1, conv.shape[1]).contiguous(),
        conv_bias[None],
        native.bias_column(expand, expand_bias),
        by_row,
        by_column,
    )
    return out.to(x.dtype)


dual_features = Kernel("dual_features", "cpu", native.refusal, _forward)
