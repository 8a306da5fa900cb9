"""One call of the decoder by Triton kernels: positions, constants, launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from c2d_kernels import triton_support

from .decoder_shape import DecoderShape
from .positions import Axis, Queries, axes
from .triton_tables import Tables, folds, tables


class Decoder:
    """Tables, positions and launches of one call."""

    def __init__(
        self,
        features: Tensor,
        weights: Mapping[str, Tensor],
        shape: DecoderShape,
        queries: Queries,
        made: Tables | None = None,
    ) -> None:
        self.features, self.weights, self.shape = features, weights, shape
        self.batch, *self.size, width = features.shape
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        y, x, rel_cell = axes(features, shape.levels, queries)
        self.queries = queries.count
        self.columns = x.t.shape[-1]
        self.rel_cell = rel_cell.to(self.dtype).expand(self.batch, 2).contiguous()
        self.places = [*_places(y), *_places(x)]
        depth = triton_support.block(width)
        self.constants: dict[str, Any] = {
            "LEVELS": shape.levels,
            "ATTENTIONS": shape.attentions,
            "CHANNELS": width,
            "DEPTH": depth,
            "GRID": queries.size is not None,
            **triton_support.types(features.dtype),
            **launch_constants(depth, features.dtype),
        }
        self.programs = self.batch * -(-self.queries // self.constants["BLOCK"])
        self.heads = {
            "HEADS": shape.heads,
            "HEAD": triton_support.block(shape.head_dim),
            "HEAD_DIM": shape.head_dim,
        }
        self.tables = tables(features, weights, shape) if made is None else made

    def moments(self, before: Sequence[Tensor]) -> Tensor:
        """Sums of k^T v in attention number len(before), given the means before it."""
        from . import triton_kernels as kernels

        sizes = (self.programs, self.shape.heads, self.shape.head_dim, self.shape.head_dim)
        partial = self.features.new_empty(sizes, dtype=self.dtype)
        if self.programs > 0:
            with triton_support.on_device(partial):
                kernels.moments[self.programs,](
                    *self.read(self.folds(before)),
                    *(self.tables.keys, self.tables.norms, partial),
                    *self.sizes(),
                    STOP=len(before),
                    **self.heads,
                    **self.constants,
                )
        return partial.unflatten(0, (self.batch, -1)).sum(1) if self.batch else partial

    def decode(self, image: Tensor, moments: Sequence[Tensor]) -> Tensor:
        """RGB, (B, queries, 3), given the means of all attentions."""
        from . import triton_kernels as kernels

        out = image.new_empty((self.batch, self.queries, 3))
        folded = self.folds(moments)
        if out.numel() > 0:
            with triton_support.on_device(out):
                kernels.decode[self.programs,](
                    *(*self.read(folded), image.contiguous(), out),
                    *self.sizes(),
                    **self.constants,
                )
        return out

    def read(self, folded: Sequence[Tensor]) -> list[Tensor]:
        """Arguments of every kernel that begins with level 0."""
        products, stats, matrices, vectors, *_ = self.tables
        return [products, stats, *self.places, self.rel_cell, matrices, vectors, *folded]

    def folds(self, moments: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The matrices behind attentions of these means, and their biases."""
        return folds(self.features, self.weights, self.shape, moments)

    def sizes(self) -> tuple[tuple[int, ...], int, int, int]:
        """(H, W), images, queries of each, columns of a grid."""
        return tuple(self.size), self.batch, self.queries, self.columns


def launch_constants(depth: int, dtype: torch.dtype, backward: bool = False) -> dict[str, int]:
    """Queries of a program, hidden channels of an MLP at a time, warps: what does not spill.

    The backward has blocks of 32: with 64 Triton 3.6 makes wgmma of its products on an H200, which
    read shared memory out of bounds (8 warps) or gave wrong numbers (4).
    """
    block, chunk, warps = 64, 16, 4
    if depth > 64:
        block, chunk, warps = 32, 32, 8
    elif backward:
        block, chunk = 32, 16 if dtype == torch.float32 else 32
    elif dtype == torch.float32:
        warps = 8
    return {
        "BLOCK": block,
        "CHUNK": min(chunk, depth),
        "num_warps": warps,
        "num_stages": 1,
    }


def _places(axis: Axis) -> list[Tensor]:
    """Positions along an axis: (..., 3) int32 = neighbours and digits as bits; t."""
    bits = [digit.to(torch.int32) << level for level, digit in enumerate(axis.digits)]
    places = [axis.low.to(torch.int32), axis.high.to(torch.int32), sum(bits[1:], bits[0])]
    return [torch.stack(places, dim=-1), axis.t.contiguous()]
