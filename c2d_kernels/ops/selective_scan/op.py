"""The operator `c2d::selective_scan` and its public function."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from . import chunked, cuda, native, reference

MAX_STATES = 256
STEPS_A_STATE = 16  # between the states that a kernel may keep for the backward


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@overload
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
    return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def selective_scan(
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
    """Scan a sequence with input-dependent state-space parameters; mamba_ssm's selective_scan_fn.

    `h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t`, `y_t = C_t h_t + D u_t`, then times silu(z).

    Args:
        u: (batch, D, L), float32, bfloat16, float16 or float64. Any strides; L may be 0.
        delta: (batch, D, L), the step sizes, in the dtype of u.
        A: (D, N), real and usually negative; N at most 256. May be float32 beside half-precision u.
        B: (D, N) constant, or (batch, N, L), or (batch, G, N, L) with G dividing D: channel c uses
            group c // (D/G).
        C: as B, independently of B's form.
        D: (D,), the skip weight, or None.
        z: (batch, D, L), the gate, in the dtype of u, or None.
        delta_bias: (D,), added to delta first, or None.
        delta_softplus: whether delta goes through softplus (after the bias).
        return_last_state: whether to return h_L too.

    Returns:
        y (batch, D, L) in the dtype and layout of u; with return_last_state, (y, h_L), h_L
        (batch, D, N) in float32 (float64 for float64).

    Raises:
        ValueError: a shape that does not fit. TypeError: a dtype that does not.

    Mamba (2312.00752), equation 2 with zero-order hold for A.
    """
    checks.parameters(u, u=u, delta=delta, A=A, B=B, C=C)
    checks.parameters(u, **checks.given(D=D, z=z, delta_bias=delta_bias))
    u, delta, *gate = dispatch.autocast(u, delta, *(() if z is None else (z,)))
    z = gate[0] if gate else None
    checks.features(u=u, delta=delta, **checks.given(z=z))
    checks.shape("u", u, (None, None, None), "(batch, D, L)")
    batch, channels, length = u.shape
    if channels == 0:
        raise ValueError(f"u must have at least one channel, got {tuple(u.shape)}.")
    checks.shape("delta", delta, tuple(u.shape), "(batch, D, L)")
    checks.shape("A", A, (channels, None), "(D, N)")
    states = A.shape[1]
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"A must have 1 to {MAX_STATES} states, got {states}.")
    for name, matrix in (("B", B), ("C", C)):
        if matrix.dim() == 2:
            checks.shape(name, matrix, (channels, states), "(D, N)")
        elif matrix.dim() == 3:
            checks.shape(name, matrix, (batch, states, length), "(batch, N, L)")
        elif matrix.dim() == 4:
            checks.shape(name, matrix, (batch, None, states, length), "(batch, G, N, L)")
            checks.divides(
                f"the groups G of {name}", matrix.shape[1], "the channels of u", channels
            )
        else:
            raise ValueError(
                f"{name} must be (D, N), (batch, N, L) or (batch, G, N, L), "
                f"got {tuple(matrix.shape)}."
            )
    # What changes with time is a feature, and autocast takes it as one; constants stay as they are.
    B, C = (x if x.dim() == 2 else dispatch.autocast(u, x)[1] for x in (B, C))
    for name, vector in checks.given(D=D, delta_bias=delta_bias).items():
        checks.shape(name, vector, (channels,), "(D,)")
    if z is not None:
        checks.shape("z", z, tuple(u.shape), "(batch, D, L)")
    run = reference.selective_scan if length == 0 else _operator
    y, last_state = run(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, last_state) if return_last_state else y


def flops(batch: int, channels: int, length: int, states: int) -> int:
    """Operations of the definition: 9 multiply-adds for each channel, step and state."""
    return 18 * batch * channels * length * states


def _fake(u: Tensor, delta: Tensor, A: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    state = torch.promote_types(u.dtype, torch.float32)
    return torch.empty_like(u), u.new_empty((u.shape[0], u.shape[1], A.shape[1]), dtype=state)


def _states_kept(u: Tensor, delta: Tensor, A: Tensor, *_: object) -> Tensor:
    """The states before every 16th step, (batch, ceil(L/16), N, D)."""
    batch, channels, length = u.shape
    shape = (batch, (length + STEPS_A_STATE - 1) // STEPS_A_STATE, A.shape[1], channels)
    return u.new_empty(shape, dtype=torch.promote_types(u.dtype, torch.float32))


def _example(device: torch.device) -> tuple:
    x = torch.zeros(1, 4, 8, device=device)
    return x, x, x[0, :, :2], x[:, :2], x[:, :2], None, None, None, False


_operator = define(
    Operator(
        name="selective_scan",
        arguments="Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
        "Tensor? delta_bias, bool delta_softplus",
        outputs=2,
        reference=reference.selective_scan,
        fake=_fake,
        flops=lambda u, delta, A, *_: flops(u[0], u[1], u[2], A[1]),
        example=_example,
        kept=_states_kept,
        layouts=(0, None),
        unrolls=True,
    )
)
dispatch.register(cuda.kernel)
dispatch.register(native.kernel)
dispatch.register(chunked.kernel)
