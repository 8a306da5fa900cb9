"""The specification of the selective scan (Mamba, 2312.00752), a plain loop over the sequence.

Any floating dtype, any device, differentiable by torch. Half-precision sequences are computed in
float32; y has the dtype of u, the last state is float32 (float64 for float64 sequences).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    Arguments: TypeAlias = tuple[
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, bool
    ]
    """u, delta, A, B, C, D, z, delta_bias, delta_softplus."""


SOFTPLUS_THRESHOLD = 20.0  # above it softplus is taken to be the identity, as in torch


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """`h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t`, `y_t = C_t h_t + D u_t`, times silu(z).

    u, delta, z (batch, D, L); A (D, N); B and C (D, N), (batch, N, L) or (batch, G, N, L), where
    channel c uses group c // (D/G); D and delta_bias (D,). Returns y (batch, D, L) and the state
    h_L (batch, D, N).
    """
    batch, channels, length = u.shape
    compute = torch.promote_types(u.dtype, torch.float32)
    x, delta, A = u.to(compute), delta.to(compute), A.to(compute)
    if delta_bias is not None:
        delta = delta + delta_bias.to(compute)[:, None]
    if delta_softplus:
        delta = F.softplus(delta, threshold=SOFTPLUS_THRESHOLD)

    def steps(matrix: Tensor) -> list[Tensor]:
        """Each step's B or C, broadcastable to (batch, D, N)."""
        matrix = matrix.to(compute)
        if matrix.dim() == 2:
            return [matrix] * length
        if matrix.dim() == 3:
            return list(matrix[:, None].unbind(-1))
        return list(matrix.repeat_interleave(channels // matrix.shape[1], dim=1).unbind(-1))

    state = x.new_zeros(batch, channels, A.shape[1])
    outputs = []
    sequence = zip(x.unbind(-1), delta.unbind(-1), steps(B), steps(C), strict=True)
    for x_t, delta_t, B_t, C_t in sequence:
        delta_t = delta_t[..., None]
        state = torch.exp(delta_t * A) * state + delta_t * x_t[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    y = torch.stack(outputs, dim=-1) if outputs else x
    if D is not None:
        y = y + D.to(compute)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(compute))
    return y.to(u.dtype), state
