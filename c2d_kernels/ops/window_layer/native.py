"""The window layer by the native CPU kernel (csrc/window_layer)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ...dispatch import Kernel
from ..attention_branch.native import run


def _forward(
    x: Tensor, bias_table: Tensor, weights: Sequence[Tensor], *numbers: int | float
) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = weights[6:]
    mlp = [
        native.column_after_norm(fc1, fc1_bias, norm2, norm2_bias),
        native.bias_column(fc2, fc2_bias),
    ]
    return run(x, bias_table, weights[:6], mlp, *numbers)


window_layer = Kernel("window_layer", "cpu", native.refusal, _forward)
