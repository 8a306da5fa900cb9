"""Selective scan by the CUDA kernels (csrc/selective_scan/cuda_*)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .reference import Arguments

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_BATCH = 65535  # images lie along a dimension of the launch grid


def _can_run(u: Tensor, *_: object) -> str | None:
    if native.missing is not None:
        return native.missing
    if u.device.type != "cuda":
        return f"it runs on CUDA tensors, and these are on {u.device}"
    if u.dtype not in _DTYPES:
        return f"it computes in float32, and u is {str(u.dtype).removeprefix('torch.')}"
    if u.shape[0] > MAX_BATCH:
        return f"it takes at most {MAX_BATCH} images, and u has {u.shape[0]}"
    if not _has_code(u.device):
        return "the native library holds no code for this GPU: see python -m c2d_kernels"
    return None


@functools.cache
def _image(device: torch.device) -> int:
    """The architecture of the library's code that this GPU runs; 0: none. Asked once."""
    with torch.cuda.device(device):
        return torch.ops.c2d_native.cuda_image()


def _has_code(device: torch.device) -> bool:
    return _image(device) != 0


# torch.compile takes the answer instead of tracing the question, which is an operator that returns
# no tensor. This is what torch.compiler.assume_constant_result sets; to call it imports the
# compiler, which takes longer than the upscaling of a small picture.
vars(_has_code)["_dynamo_marked_constant"] = True


def _forward(*arguments: Unpack[Arguments]) -> tuple[Tensor, Tensor]:
    op = torch.ops.c2d_native.selective_scan.default
    y, last_state, _ = op(*_ready(*arguments), False)
    return y, last_state


def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    *rest: Unpack[tuple[Unpack[Arguments], list[bool]]],
) -> Sequence[Tensor | None]:
    arguments, mask = rest[:-1], rest[-1]
    op = torch.ops.c2d_native.selective_scan_backward.default
    nothing = grad_last_state.new_empty(0)
    found = op(grad_y, grad_last_state.contiguous(), nothing, *_ready(*arguments))
    return [
        gradient.to(x.dtype) if needed and x is not None else None
        for gradient, x, needed in zip(found, arguments[:-1], mask, strict=True)
    ]


def _ready(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor | bool | None]:
    """Sequences in u's dtype, constants in float32 and dense."""

    def dense(x: Tensor) -> Tensor:
        return x.float().contiguous()

    B, C = (dense(x) if x.dim() == 2 else x.to(u.dtype) for x in (B, C))
    D, delta_bias = (None if x is None else dense(x) for x in (D, delta_bias))
    return [u, delta, dense(A), B, C, D, z, delta_bias, delta_softplus]


kernel = Kernel(
    "selective_scan",
    "cuda",
    _can_run,
    _forward,
    _backward,
    native_ops=("selective_scan", "selective_scan_backward", "cuda_image"),
)
