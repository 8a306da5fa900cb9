"""The functions of mamba_ssm and causal_conv1d, with their arguments, shapes and dtypes.

Each is its formula in PyTorch around `selective_scan`. As the originals, they compute in the dtypes
that they are given, whatever autocast says, but for the Linears in mamba_inner_fn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..dispatch import backend
from ..ops.selective_scan.op import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`c2d_kernels.selective_scan` as mamba_ssm has it: y is dense, its dtype u's under autocast.

    Code that was written for mamba_ssm takes views of y.
    """
    with dispatch.without_autocast(u.device):
        y, last_state = selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True
        )
    y = y.contiguous()
    return (y, last_state) if return_last_state else y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """selective_scan_fn by its reference, a loop over the sequence: slow, and the specification."""
    with backend("reference"):
        return selective_scan_fn(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
        )


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """A Mamba block after its first Linear: convolution, SiLU, selective scan, gate, last Linear.

    Args:
        xz: (batch, 2 D, L): the scan's input and its gate.
        conv1d_weight: (D, 1, width), depthwise and causal; conv1d_bias: (D,) or None.
        x_proj_weight: (rank + 2 N, D), or without the rows of B and C where those are given.
        delta_proj_weight: (D, rank).
        out_proj_weight: (out, D); out_proj_bias: (out,) or None.
        A, B, C, D, delta_bias, delta_softplus: as in selective_scan.
        B_proj_bias, C_proj_bias: (N,), added to the B and C that x_proj_weight makes.

    Returns:
        (batch, L, out).

    Mamba (2312.00752), figure 3.
    """
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    x, z = xz.chunk(2, dim=1)
    seen = F.pad(x, (conv1d_weight.shape[-1] - 1, 0))
    x = _convolved(seen, conv1d_weight.squeeze(1), conv1d_bias, "silu")
    projected = F.linear(x.mT, x_proj_weight)
    if B is None:
        B = _with_bias(projected[..., rank : rank + states], B_proj_bias).mT
    if C is None:
        C = _with_bias(projected[..., -states:], C_proj_bias).mT
    delta = F.linear(projected[..., :rank], delta_proj_weight).mT
    with dispatch.without_autocast(x.device):
        y = selective_scan(x, delta.to(x.dtype), A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution of a sequence with what came before: `y_t = sum_i w_i x_(t-W+1+i)`.

    Args:
        x: (batch, D, L). weight: (D, W). bias: (D,) or None.
        seq_idx: must be None: packed sequences are not supported.
        initial_states: (batch, D, W - 1), what came before x, or None for zeros.
        return_final_states: whether to return the last W - 1 inputs too, (batch, D, W - 1).
        final_states_out: where to write those.
        activation: None, "silu" or "swish", which are the same.

    Returns:
        (batch, D, L) in the dtype of x; with return_final_states, that and the final states.

    Raises:
        ValueError: seq_idx is given, or another activation.
    """
    if seq_idx is not None:
        raise ValueError("seq_idx must be None: call causal_conv1d_fn on each sequence by itself.")
    before = weight.shape[1] - 1
    if initial_states is None:
        initial_states = x.new_zeros(x.shape[0], x.shape[1], before)
    seen = torch.cat([initial_states.to(x.dtype), x], dim=-1)
    y = _convolved(seen, weight, bias, activation)
    if not return_final_states:
        return y
    final = seen[..., seen.shape[-1] - before :]
    return y, final.clone() if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """causal_conv1d_fn of the next steps of a sequence, x (batch, D) or (batch, D, steps).

    Args:
        conv_state: (batch, D, at least W - 1), the inputs before x; the new ones are written to it.
        weight, bias, activation: as in causal_conv1d_fn.

    Returns:
        As x.
    """
    steps = x if x.dim() == 3 else x[..., None]
    seen = torch.cat([conv_state.to(x.dtype), steps], dim=-1)
    with torch.no_grad():
        conv_state.copy_(seen[..., seen.shape[-1] - conv_state.shape[-1] :])
    first = seen.shape[-1] - steps.shape[-1] - (weight.shape[1] - 1)
    y = _convolved(seen[..., first:], weight, bias, activation)
    return y if x.dim() == 3 else y[..., 0]


def _convolved(seen: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation must be None, 'silu' or 'swish', got {activation!r}.")
    with dispatch.without_autocast(seen.device):
        weight = weight[:, None]
        bias = None if bias is None else bias.to(weight.dtype)
        y = F.conv1d(seen.to(weight.dtype), weight, bias, groups=len(weight))
        return (y if activation is None else F.silu(y)).to(seen.dtype)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """One step of the selective scan: `state = exp(dt A) state + dt B x`, `y = C state + D x`.

    Args:
        state: (batch, D, N), or with heads (batch, heads, D, N). It is overwritten.
        x, dt, z: (batch, D) or (batch, heads, D).
        A: (D, N) or (heads, D, N). D, dt_bias: (D,) or (heads, D).
        B, C: (batch, N), or (batch, G, N) with G dividing the heads.

    Returns:
        As x, in its dtype.
    """
    heads = state.dim() == 4
    with dispatch.without_autocast(x.device):
        compute = torch.promote_types(state.dtype, torch.float32)
        step = dt.to(compute) if dt_bias is None else dt.to(compute) + dt_bias.to(compute)
        step = (F.softplus(step) if dt_softplus else step)[..., None]
        rows = state.shape[1]  # B and C are shared by the heads of a group, or by all channels
        B, C = (m if m.dim() == 3 else m[:, None] for m in (B, C))
        B, C = (m.to(compute).repeat_interleave(rows // m.shape[1], dim=1) for m in (B, C))
        B, C = (m[:, :, None] if heads else m for m in (B, C))
        new = torch.exp(step * A.to(compute)) * state.to(compute)
        new = new + step * B * x.to(compute)[..., None]
        with torch.no_grad():
            state.copy_(new)
        y = (new * C).sum(-1)
        if D is not None:
            y = y + D.to(compute) * x.to(compute)
        if z is not None:
            y = y * F.silu(z.to(compute))
        return y.to(x.dtype)
