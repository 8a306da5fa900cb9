"""The per-token part of a res-post-norm layer by the native CPU kernels (csrc/res_post_norm)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

MAX_PARTS = 4
_NORMS = (1, 4)  # where they are in what _matrices returns


def _can_run(x: Tensor, parts: Sequence[Tensor], *_: object) -> str | None:
    if len(parts) > MAX_PARTS:
        return f"it takes up to {MAX_PARTS} parts, got {len(parts)}"
    return native.refusal(x)


def fold(features: torch.dtype, widths: Sequence[int], weights: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype."""
    matrices = _matrices(weights, torch.promote_types(features, torch.float32))
    if not native.multiplies_bfloat16(features):
        return matrices
    return [
        matrix if place in _NORMS else native.bfloat16_columns(matrix)
        for place, matrix in enumerate(matrices)
    ]


def run(x: Tensor, parts: Sequence[Tensor], folded: list[Tensor], eps: float) -> Tensor:
    """The forward; parts in the dtype of x."""
    op = torch.ops.c2d_native.res_post_norm.default
    return op(native.computed(x), list(map(native.computed, parts)), folded, eps).to(x.dtype)


def _forward(x: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor], eps: float) -> Tensor:
    return run(x, parts, fold(x.dtype, [part.shape[-1] for part in parts], weights), eps)


def _backward(
    grad: Tensor,
    x: Tensor,
    parts: Sequence[Tensor],
    weights: Sequence[Tensor],
    eps: float,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    compute = torch.promote_types(x.dtype, torch.float32)
    maps = [part.to(compute) for part in parts]
    op = torch.ops.c2d_native.res_post_norm_backward.default
    dx, dparts, dweights = op(
        grad.to(compute), x.to(compute), maps, _matrices(weights, compute), eps
    )
    proj, norm1, *mlp = dweights
    found = [dx, *dparts, proj[:-1].t(), proj[-1], *norm1]
    if mlp:
        fc1, fc2, norm2 = mlp
        found += [fc1[:, :-1], fc1[:, -1], fc2[:-1].t(), fc2[-1], *norm2]
    return tuple(
        gradient.to(tensor.dtype) if needed else None
        for gradient, tensor, needed in zip(found, (x, *parts, *weights), mask, strict=True)
    )


def _matrices(weights: Sequence[Tensor], compute: torch.dtype) -> list[Tensor]:
    """proj, the first norm and, if they are there, fc1, fc2 and the second norm for the kernels."""
    proj, proj_bias, norm1, norm1_bias, *mlp = (weight.to(compute) for weight in weights)
    matrices = [native.bias_column(proj, proj_bias), torch.stack([norm1, norm1_bias])]
    if mlp:
        fc1, fc1_bias, fc2, fc2_bias, *norm2 = mlp
        matrices += [native.bias_column(fc1, fc1_bias), native.bias_column(fc2, fc2_bias)]
        matrices.append(torch.stack(norm2))
    return matrices


res_post_norm = Kernel(
    "res_post_norm",
    "cpu",
    _can_run,
    _forward,
    _backward,
    native_ops=("res_post_norm", "res_post_norm_backward"),
)
