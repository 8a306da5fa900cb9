"""The decoder as the Triton kernels read it: tables, folded matrices, positions, launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import triton_support
from .positions import Axis, Region, axes


class Tables(NamedTuple):
    """What the kernels read instead of features and weights; channels padded to a power of two."""

    products: Tensor  # (pixels, 4, DEPTH): fc1 of level 0 for each tap of the centred features / s
    stats: Tensor  # (pixels, 3): mean, mean square about it, s
    matrices: Tensor  # (n, DEPTH, DEPTH), (inputs, outputs): fc2; fc1, fc2 a level; proj2s
    vectors: Tensor  # (n, DEPTH): see triton_kernels; LayerNorms' gains and offsets are folded in
    keys: Tensor  # (attentions, 2, heads, DEPTH, HEAD): W_k and W_v
    norms: Tensor  # (attentions, 2, heads, 3, HEAD): their bias, and gain and offset after them


class Decoder:
    """Tables, positions and launches of one call."""

    def __init__(
        self,
        features: Tensor,
        weights: Mapping[str, Tensor],
        levels: int,
        heads: int,
        attentions: int,
        size: Sequence[int] | None,
        coords: Tensor | None,
        cell: Tensor | None,
        region: Region | None,
        made: Tables | None = None,
    ) -> None:
        self.features, self.weights = features, weights
        self.numbers = (levels, heads, attentions)
        self.batch, *self.size, width = features.shape
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        wide = features.new_empty((), dtype=self.dtype).expand(features.shape)
        y, x, rel_cell = axes(wide, levels, size, coords, cell, region)
        self.queries = y.t.numel() * x.t.numel() if size is not None else y.t.shape[1]
        self.columns = x.t.shape[-1]
        self.rel_cell = rel_cell.to(self.dtype).expand(self.batch, 2).contiguous()
        self.places = [*_places(y), *_places(x)]
        depth = triton_support.block(width)
        self.constants = {
            "LEVELS": levels,
            "ATTENTIONS": attentions,
            "CHANNELS": width,
            "DEPTH": depth,
            "GRID": size is not None,
            **triton_support.types(features.dtype),
            **launch_constants(depth, features.dtype),
        }
        self.programs = self.batch * -(-self.queries // self.constants["BLOCK"])
        self.heads = {
            "HEADS": heads,
            "HEAD": triton_support.block(width // heads),
            "HEAD_DIM": width // heads,
        }
        self.tables = tables(features, weights, *self.numbers) if made is None else made

    def moments(self, before: Sequence[Tensor]) -> Tensor:
        """Sums of k^T v in attention number len(before), given the means before it."""
        from . import triton_kernels as kernels

        heads, head_dim = self.heads["HEADS"], self.heads["HEAD_DIM"]
        shape = (self.programs, heads, head_dim, head_dim)
        partial = self.features.new_empty(shape, dtype=self.dtype)
        if self.programs > 0:
            with triton_support.on_device(partial):
                kernels.moments[self.programs,](
                    *self.read(folds(self.features, self.weights, before, heads)),
                    *(self.tables.keys, self.tables.norms, partial),
                    *self.shape(),
                    STOP=len(before),
                    **self.heads,
                    **self.constants,
                )
        return partial.unflatten(0, (self.batch, -1)).sum(1) if self.batch else partial

    def decode(self, image: Tensor, moments: Sequence[Tensor]) -> Tensor:
        """RGB, (B, queries, 3), given the means of all attentions."""
        from . import triton_kernels as kernels

        out = image.new_empty((self.batch, self.queries, 3))
        folded = folds(self.features, self.weights, moments, self.heads["HEADS"])
        if out.numel() > 0:
            with triton_support.on_device(out):
                kernels.decode[self.programs,](
                    *(*self.read(folded), image.contiguous(), out),
                    *self.shape(),
                    **self.constants,
                )
        return out

    def read(self, folded: Sequence[Tensor]) -> list[Tensor]:
        """What every kernel that begins with level 0 reads."""
        products, stats, matrices, vectors, *_ = self.tables
        return [products, stats, *self.places, self.rel_cell, matrices, vectors, *folded]

    def shape(self) -> tuple[tuple[int, ...], int, int, int]:
        """(H, W), images, queries of each, columns of a grid."""
        return tuple(self.size), self.batch, self.queries, self.columns


def launch_constants(depth: int, dtype: torch.dtype, backward: bool = False) -> dict[str, int]:
    """Queries of a program, hidden channels of an MLP at a time, warps: what does not spill."""
    block, chunk, warps = 64, 16, 4
    if depth > 64:
        block, chunk, warps = 32, 32, 8
    elif dtype == torch.float32:
        block, warps = (32, 4) if backward else (64, 8)
    elif backward:
        chunk, warps = 32, 8
    return {
        "BLOCK": block,
        "CHUNK": min(chunk, depth),
        "num_warps": warps,
        "num_stages": 1,
    }


def tables(
    features: Tensor, weights: Mapping[str, Tensor], levels: int, heads: int, attentions: int
) -> Tables:
    """Everything that does not depend on the queries, differentiable by torch.

    Each pixel is normalised before it meets the matrix of level 0, by a scale s of its own that
    the kernel multiplies by again: whatever the features' range, half precision holds the table.
    """
    width, depth = features.shape[-1], triton_support.block(features.shape[-1])
    narrow, wide = features.dtype, torch.promote_types(features.dtype, torch.float32)
    weights = {name: weight.double() for name, weight in weights.items()}

    def fold(level: int) -> tuple[Tensor, Tensor]:
        name = f"mlps.{level}"
        matrix = weights[f"{name}.fc1.weight"]
        bias = matrix @ weights[f"{name}.norm.bias"] + weights[f"{name}.fc1.bias"]
        return matrix * weights[f"{name}.norm.weight"], bias

    first, bias = fold(0)
    taps = first[:, : 4 * width].unflatten(1, (4, width))  # (outputs, taps, inputs)
    pixels = features.reshape(-1, width).to(wide)
    mean = pixels.mean(1, keepdim=True)
    centred = pixels - mean
    square = (centred * centred).mean(1, keepdim=True)
    scale = square.detach().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    matrix = F.pad(taps, (0, 0, 0, 0, 0, depth - width)).permute(2, 1, 0).flatten(1)
    products = (centred / scale).to(narrow) @ matrix.to(narrow)

    matrices = []
    vectors = [*taps.sum(2).unbind(1), *first[:, 4 * width :].unbind(1), bias]
    for level in range(levels):
        name = f"mlps.{level}"
        if level > 0:
            matrix, bias = fold(level)
            matrices.append(matrix[:, :width].mT)
            vectors += [*matrix[:, width:].unbind(1), bias]
        matrices.append(weights[f"{name}.fc2.weight"].mT)
        vectors.append(weights[f"{name}.fc2.bias"])
    for index in range(attentions):
        matrices.append(weights[f"attentions.{index}.proj2.weight"].mT)
        vectors.append(weights[f"attentions.{index}.proj2.bias"])
    matrices = torch.stack([_padded(matrix, depth, depth) for matrix in matrices])
    vectors = torch.stack([_padded(vector, depth) for vector in vectors])
    keys, norms = _heads(weights, width, heads, attentions)
    return Tables(
        products.contiguous(),
        torch.cat([mean, square, scale], dim=1),
        matrices.to(narrow),
        vectors.to(wide),
        keys.to(narrow),
        norms.to(wide),
    )


def _heads(
    weights: Mapping[str, Tensor], width: int, heads: int, attentions: int
) -> tuple[Tensor, Tensor]:
    """The keys and norms of Tables."""
    depth, head = triton_support.block(width), triton_support.block(width // heads)
    kind = weights["mlps.0.fc1.bias"]
    if attentions == 0:
        return kind.new_zeros(0, 2, heads, depth, head), kind.new_zeros(0, 2, heads, 3, head)
    keys, norms = [], []
    for index in range(attentions):
        name = f"attentions.{index}"
        for part, norm in ((1, "k_norm"), (2, "v_norm")):
            matrix, bias = (
                weights[f"{name}.qkv.{leaf}"].unflatten(0, (3, heads, -1))[part]
                for leaf in ("weight", "bias")
            )
            affine = [
                weights[f"{name}.{norm}.{leaf}"].expand_as(bias) for leaf in ("weight", "bias")
            ]
            keys.append(_padded(matrix.mT, depth, head))
            norms.append(_padded(torch.stack([bias, *affine], dim=1), head))
    return (
        torch.stack(keys).unflatten(0, (attentions, 2)),
        torch.stack(norms).unflatten(0, (attentions, 2)),
    )


def folds(
    features: Tensor, weights: Mapping[str, Tensor], moments: Sequence[Tensor], heads: int
) -> tuple[Tensor, Tensor]:
    """proj1 of q M + x as one Linear of x: (attentions, B, inputs, outputs) and its bias."""
    width, depth = features.shape[-1], triton_support.block(features.shape[-1])
    matrices, offsets = [], []
    for index, moment in enumerate(moments):
        name = f"attentions.{index}"
        proj = weights[f"{name}.proj1.weight"].double()
        query, offset = (
            weights[f"{name}.qkv.{leaf}"][:width].double().unflatten(0, (heads, -1))
            for leaf in ("weight", "bias")
        )
        # (B, width, outputs): M of each head, and its part of proj1 after it
        after = moment.double() @ proj.mT.unflatten(0, (heads, -1))
        matrices.append((query.mT @ after).sum(1) + proj.mT)
        bias = (offset[:, None] @ after).sum(1).squeeze(1)
        offsets.append(bias + weights[f"{name}.proj1.bias"].double())
    wide = torch.promote_types(features.dtype, torch.float32)
    if not matrices:
        return features.new_empty(0), features.new_empty(0, dtype=wide)
    return (
        _padded(torch.stack(matrices), depth, depth).to(features.dtype),
        _padded(torch.stack(offsets), depth).to(wide),
    )


def _padded(x: Tensor, *shape: int) -> Tensor:
    """The last dimensions filled up with zeros."""
    have = x.shape[-len(shape) :]
    pads = [n for a, b in zip(have[::-1], shape[::-1], strict=True) for n in (0, b - a)]
    return F.pad(x, pads)


def _places(axis: Axis) -> list[Tensor]:
    """Positions along an axis: (..., 3) int32 = neighbours and digits as bits; t."""
    bits = sum(digit.to(torch.int32) << level for level, digit in enumerate(axis.digits))
    places = [axis.low.to(torch.int32), axis.high.to(torch.int32), bits]
    return [torch.stack(places, dim=-1), axis.t.contiguous()]
