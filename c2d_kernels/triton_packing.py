"""Weights of layers as their Triton kernels (triton_layers.py) read them, and what those are
compiled for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import triton_support
from .triton_support import block

TOKENS = 64  # of a program
CHUNK = 32  # hidden channels of an MLP at a time
PRECISION = "ieee"  # of products of float32


def precisions(features: torch.dtype, matrix: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """In what matrices are multiplied, and in what everything is added up.

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


def layer_constants(channels: int, features: torch.dtype, matrix: torch.dtype) -> dict[str, object]:
    """What a layer's kernel is compiled for, besides its own."""
    return {
        "CHANNELS": channels,
        "DEPTH": block(channels),
        "CHUNK": CHUNK,
        "BLOCK": TOKENS,
        "DOT": triton_support.types(matrix)["DOT"],
        "SUM": triton_support.types(features)["SUM"],
        "PRECISION": PRECISION,
        "num_warps": 4,
        "num_stages": 1,
    }
