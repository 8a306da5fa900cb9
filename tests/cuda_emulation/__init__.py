"""The selective scan's CUDA kernels, run on the CPU by an emulator of blocks, warps and barriers.

What it proves: addresses, sums, barriers and the launch plan of the very sources that nvcc
compiles. What it cannot: speed, and whatever a real GPU does otherwise.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from tests import compiled

_SCAN = "csrc/selective_scan"
_HEADERS = (
    f"{_SCAN}/scan.h",
    f"{_SCAN}/cuda_scan.h",
    f"{_SCAN}/cuda_forward.cuh",
    f"{_SCAN}/cuda_backward.cuh",
    "tests/cuda_emulation/cuda_on_cpu.h",
)


def emulated() -> ModuleType:
    """The compiled emulation."""
    return compiled.module("emulated", "tests/cuda_emulation/emulate.cpp", _HEADERS)


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
    """y and the last state; tensors as torch.ops.c2d_native.selective_scan takes them on CUDA."""
    y = torch.full_like(u, torch.nan)
    last = torch.full((*u.shape[:2], A.shape[1]), torch.nan)
    inputs = _described(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    outputs = _described(y=y, last=last)
    _run("forward", u, {**inputs, **outputs, "softplus": delta_softplus})
    return y, last


def selective_scan_backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> dict[str, Tensor]:
    """The gradient of each tensor that is there, by its name."""
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    tensors |= {"D": D, "z": z, "delta_bias": delta_bias}
    tensors = {name: x for name, x in tensors.items() if x is not None}
    found = {
        name: torch.full(
            x.shape, torch.nan, dtype=x.dtype if name in ("u", "delta", "z") else torch.float32
        )
        for name, x in tensors.items()
    }
    outputs = {f"d{name}": x for name, x in found.items()}
    arguments = _described(**tensors, dy=grad_y, dlast=grad_last_state, **outputs)
    _run("backward", u, {**arguments, "softplus": delta_softplus})
    return found


def _run(direction: str, u: Tensor, arguments: dict[str, object]) -> None:
    dtype = str(u.dtype).removeprefix("torch.")
    getattr(emulated(), f"{direction}_{dtype}")(arguments)


def _described(**tensors: Tensor | None) -> dict[str, dict[str, object]]:
    """Addresses, sizes and strides, in the kernels' words."""
    return {
        name: {"data": x.data_ptr(), "sizes": list(x.shape), "strides": list(x.stride())}
        for name, x in tensors.items()
        if x is not None
    }
