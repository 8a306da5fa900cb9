"""Tables and folded matrices that the Triton kernels read instead of features and weights.

All of it is made by torch, which differentiates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels import triton_support

from .decoder_shape import DecoderShape

TAPS = 4  # the neighbours of a query
RGB = 16  # three colours, padded to what tl.dot takes

# Tables.vectors: first those of level 0 (4 row sums, 4 extras' columns, both biases), then those of
# each other level (2 digits' columns, both biases), then each attention's bias of proj2.
FIRST_VECTORS = 10
FIRST_BIAS = 8  # that of fc1 in level 0
LEVEL_VECTORS = 4


def level_vectors(level: int) -> int:
    """The first vector of a level but level 0."""
    return FIRST_VECTORS + LEVEL_VECTORS * (level - 1)


def proj2_vector(shape: DecoderShape, index: int) -> int:
    """The bias of proj2 in attention `index`."""
    return level_vectors(shape.levels) + index


# Tables.matrices: fc2 of level 0, fc1 and fc2 of each other level, proj2 of each attention.
def fc1_matrix(level: int) -> int:
    """fc1 of a level but level 0."""
    return 2 * level - 1


def fc2_matrix(level: int) -> int:
    """fc2 of a level."""
    return 2 * level


def proj2_matrix(shape: DecoderShape, index: int) -> int:
    """proj2 of attention `index`."""
    return fc1_matrix(shape.levels) + index


class Tables(NamedTuple):
    """The kernels' stand-in for features and weights; channels are padded to a power of two."""

    products: Tensor  # (pixels, 4, DEPTH): fc1 of level 0 for each tap of the centred features / s
    stats: Tensor  # (pixels, 3): mean, mean square about it, s
    matrices: Tensor  # (n, DEPTH, DEPTH), (inputs, outputs): fc2; fc1, fc2 a level; proj2s
    vectors: Tensor  # (n, DEPTH): see triton_kernels; LayerNorms' gains and offsets are folded in
    keys: Tensor  # (attentions, 2, heads, DEPTH, HEAD): W_k and W_v
    norms: Tensor  # (attentions, 2, heads, 3, HEAD): their bias, and gain and offset after them


def tables(features: Tensor, weights: Mapping[str, Tensor], shape: DecoderShape) -> Tables:
    """Everything that does not depend on the queries, differentiable by torch.

    Each pixel is normalised before it meets the matrix of level 0, by a scale s of its own that
    the kernel multiplies by again: whatever the features' range, half precision holds the table.
    """
    width, depth = shape.width, triton_support.block(shape.width)
    narrow, wide = features.dtype, torch.promote_types(features.dtype, torch.float32)
    weights = {name: weight.double() for name, weight in weights.items()}

    def fold(level: int) -> tuple[Tensor, Tensor]:
        name = f"mlps.{level}"
        matrix = weights[f"{name}.fc1.weight"]
        bias = matrix @ weights[f"{name}.norm.bias"] + weights[f"{name}.fc1.bias"]
        return matrix * weights[f"{name}.norm.weight"], bias

    first, bias = fold(0)
    taps = first[:, : TAPS * width].unflatten(1, (TAPS, width))  # (outputs, taps, inputs)
    pixels = features.reshape(-1, width).to(wide)
    mean = pixels.mean(1, keepdim=True)
    centred = pixels - mean
    square = (centred * centred).mean(1, keepdim=True)
    scale = square.detach().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    matrix = F.pad(taps, (0, 0, 0, 0, 0, depth - width)).permute(2, 1, 0).flatten(1)
    products = (centred / scale).to(narrow) @ matrix.to(narrow)

    matrices = []
    vectors = [*taps.sum(2).unbind(1), *first[:, TAPS * width :].unbind(1), bias]
    for level in range(shape.levels):
        name = f"mlps.{level}"
        if level > 0:
            matrix, bias = fold(level)
            matrices.append(matrix[:, :width].mT)
            vectors += [*matrix[:, width:].unbind(1), bias]
        matrices.append(weights[f"{name}.fc2.weight"].mT)
        vectors.append(weights[f"{name}.fc2.bias"])
    for index in range(shape.attentions):
        matrices.append(weights[f"attentions.{index}.proj2.weight"].mT)
        vectors.append(weights[f"attentions.{index}.proj2.bias"])
    keys, norms = _heads(weights, shape)
    return Tables(
        products.contiguous(),
        torch.cat([mean, square, scale], dim=1),
        torch.stack([_padded(matrix, depth, depth) for matrix in matrices]).to(narrow),
        torch.stack([_padded(vector, depth) for vector in vectors]).to(wide),
        keys.to(narrow),
        norms.to(wide),
    )


def _heads(weights: Mapping[str, Tensor], shape: DecoderShape) -> tuple[Tensor, Tensor]:
    """The keys and norms of Tables."""
    depth, head = triton_support.block(shape.width), triton_support.block(shape.head_dim)
    heads, kind = shape.heads, weights["mlps.0.fc1.bias"]
    if shape.attentions == 0:
        return kind.new_zeros(0, 2, heads, depth, head), kind.new_zeros(0, 2, heads, 3, head)
    keys, norms = [], []
    for index in range(shape.attentions):
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
        torch.stack(keys).unflatten(0, (shape.attentions, 2)),
        torch.stack(norms).unflatten(0, (shape.attentions, 2)),
    )


def folds(
    features: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    moments: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """proj1 of q M + x as one Linear of x: (attentions, B, inputs, outputs) and its bias."""
    width, depth = shape.width, triton_support.block(shape.width)
    matrices, offsets = [], []
    for index, moment in enumerate(moments):
        name = f"attentions.{index}"
        proj = weights[f"{name}.proj1.weight"].double()
        query, offset = (
            weights[f"{name}.qkv.{leaf}"][:width].double().unflatten(0, (shape.heads, -1))
            for leaf in ("weight", "bias")
        )
        # (B, width, outputs): M of each head, and its part of proj1 after it
        after = moment.double() @ proj.mT.unflatten(0, (shape.heads, -1))
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
