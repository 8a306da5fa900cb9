"""Whether Triton is here, and why its kernels do not run when they do not."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import dispatch

# Both are asked while torch.compile traces, so they are looked up once, here.
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU; triton reads this when imported."""
    return _INTERPRETING


def refusal(x: Tensor) -> str | None:
    """Why a Triton kernel does not run on features like x, or None."""
    if not _INSTALLED:
        return "triton is not installed"
    if interpreting():
        if dispatch.requested() != "triton":
            return "Triton's interpreter is on, which runs only where it is asked for by name"
        return None
    if x.device.type != "cuda":
        return f"Triton runs on CUDA tensors, and these are on {x.device}"
    if x.dtype == torch.float64:
        return "Triton multiplies matrices of float32, bfloat16 and float16, and these are float64"
    return None


def on_device(x: Tensor) -> AbstractContextManager:
    """Launches inside go to the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def types(dtype: torch.dtype) -> dict[str, object]:
    """DOT, in which matrices are multiplied, and SUM, in which everything is added up."""
    import triton.language as tl

    dots = {torch.float64: tl.float64, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    dot = dots.get(dtype, tl.float32)
    if interpreting() and dot == tl.bfloat16:
        dot = tl.float32  # the interpreter's bfloat16 products are wrong
    return {"DOT": dot, "SUM": tl.float64 if dtype == torch.float64 else tl.float32}


def block(size: int) -> int:
    """The power of two that holds size; tl.dot takes 16 or more."""
    return max(16, 1 << (size - 1).bit_length())


def strides(x: Tensor) -> tuple[int, ...]:
    """Strides of images, rows and columns; that of channels is 1."""
    return x.stride()[:3]


def channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
