"""Weights of layers as their Triton kernels (triton_layers.py) read them, and what those are
compiled for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import triton_support
from .triton_support import block

CHUNK = 32  # hidden channels of an MLP at a time


def precisions(features: torch.dtype, matrix: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The types in which matrices are multiplied and sums are kept.

    Half-precision features are multiplied as such. So are float32's where the matrix is in half
    precision, as autocast makes it.
    """
    dot = features if features.itemsize == 2 else torch.promote_types(features, torch.float32)
    if dot == torch.float32 and matrix.dtype.itemsize == 2:
        dot = matrix.dtype
    return dot, torch.promote_types(features, torch.float32)


def padded(x: Tensor, *sizes: int) -> Tensor:
    """x with zeros behind it in its last dimensions, up to these sizes."""
    ends = [size - length for size, length in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return F.pad(x, [pad for end in reversed(ends) for pad in (0, end)]).contiguous()


def padded_hidden(hidden: int) -> int:
    """The hidden channels of an MLP as it is packed."""
    return -(-hidden // CHUNK) * CHUNK


def packed_mlp(fc1: Tensor, bias: Tensor, fc2: Tensor, dot: torch.dtype) -> list[Tensor]:
    """fc1 as (hidden / CHUNK, depth, CHUNK), its bias, fc2 as (hidden, depth): see mlp there."""
    hidden, channels = fc1.shape
    depth, padded_to = block(channels), padded_hidden(hidden)
    first = padded(fc1.mT, depth, padded_to).view(depth, -1, CHUNK).transpose(0, 1).contiguous()
    return [first.to(dot), padded(bias, padded_to), padded(fc2.mT, padded_to, depth).to(dot)]


def layer_constants(x: Tensor, matrix: Tensor) -> dict[str, object]:
    """Compile-time arguments that all layers' kernels share."""
    return {
        "CHANNELS": x.shape[-1],
        "DEPTH": block(x.shape[-1]),
        "CHUNK": CHUNK,
        "BLOCK": tokens(x.device, matrix.dtype),
        "DOT": triton_support.types(matrix.dtype)["DOT"],
        "SUM": triton_support.types(x.dtype)["SUM"],
        "PRECISION": precision(x.device),
        "num_warps": 4,
        "num_stages": 1,
    }


def tokens(device: torch.device, dot: torch.dtype) -> int:
    """Rows of a program: 64 where that does not spill, in half precision and on Hopper's wgmma."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return 64 if dot.itemsize == 2 or hopper else 32


def precision(device: torch.device) -> str:
    """How float32 is multiplied: as three products of TF32, as exact as float32 to a rounding.

    Triton's own products of float32 spill here; on an H200 they took twice the time.
    """
    tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "tf32x3" if tf32 else "ieee"
