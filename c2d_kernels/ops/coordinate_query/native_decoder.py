"""The decoder as the native CPU kernels read it: weights folded once per call, and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .decoder_shape import DecoderShape
from .positions import Axis, Queries, axes, cell_in_pixels


class Decoder:
    """Folded weights and positions, in the form in which the kernel takes them."""

    def __init__(
        self,
        features: Tensor,
        weights: Mapping[str, Tensor],
        shape: DecoderShape,
        queries: Queries,
    ) -> None:
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        self.features = features.to(self.dtype)
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.shape = shape
        self.numbers = (shape.levels, shape.heads, shape.attentions)  # as the op takes them
        if queries.size is None:
            op = torch.ops.c2d_native.coordinate_query_positions.default
            coords, cell = queries.places
            places = op(coords, self.features, shape.levels)
            rel_cell = cell_in_pixels(cell, *features.shape[1:3])
        else:
            y, x, rel_cell = axes(self.features, shape.levels, queries)
            places = [*for_kernel(y), *for_kernel(x)]
        self.positions = [*places, rel_cell.to(self.dtype)]
        self.line = self._line().to(self.dtype)

    def moments(self, before: Sequence[Tensor]) -> Tensor:
        """Sums of k^T v in attention number len(before), float64, given the means before it."""
        op = torch.ops.c2d_native.coordinate_query_moments.default
        return op(self.features, *self.arguments(before))

    def arguments(self, moments: Sequence[Tensor]) -> list[Tensor | int]:
        """Arguments of both native operators after the features (and the image)."""
        return [
            self.line.detach(),
            self.folds(moments).to(self.dtype),
            *self.positions,
            *self.numbers,
        ]

    def _line(self) -> Tensor:
        """All weights in one line, in the order of Decoder in coordinate_query.cpp."""
        width, weights, parts = self.shape.width, self.weights, []
        for level in range(self.shape.levels):
            name = f"mlps.{level}"
            matrix = weights[f"{name}.fc1.weight"]
            bias = matrix @ weights[f"{name}.norm.bias"] + weights[f"{name}.fc1.bias"]
            matrix = matrix * weights[f"{name}.norm.weight"]
            if level == 0:
                taps = matrix[:, : 4 * width].unflatten(1, (4, width)).transpose(0, 1)
                parts += [taps, matrix[:, 4 * width :], matrix.sum(1), bias]
            else:
                parts += [matrix, bias]
            parts += [weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"]]
        for index in range(self.shape.attentions):
            name = f"attentions.{index}"
            parts += [weights[f"{name}.qkv.{leaf}"][width:] for leaf in ("weight", "bias")]
            for norm in ("k_norm", "v_norm"):
                parts += [weights[f"{name}.{norm}.{leaf}"] for leaf in ("weight", "bias")]
            parts += [weights[f"{name}.proj2.{leaf}"] for leaf in ("weight", "bias")]
        return torch.cat([part.flatten() for part in parts])

    def folds(self, moments: Sequence[Tensor]) -> Tensor:
        """One fold after the other, (attentions done, B, width^2 + width), float64."""
        batch, width = self.features.shape[0], self.shape.width
        if len(moments) == 0:
            return self.line.new_empty((0, batch, width * width + width), dtype=torch.float64)
        return torch.stack([self.fold(index, moment) for index, moment in enumerate(moments)])

    def fold(self, index: int, moment: Tensor) -> Tensor:
        """proj1 of q M + x in attention `index` as one Linear of x, (B, width^2 + width)."""
        width, heads = self.shape.width, self.shape.heads
        query, offset, proj, bias = (self.weights[name] for name in self.folded(index))
        query, offset, bias = query[:width], offset[:width, None], bias[:, None]
        # (B, heads, outputs, head_dim): proj1 of each head, and M before it
        mixed = proj.unflatten(1, (heads, -1)).movedim(1, 0) @ moment.double().mT
        mixed = mixed.movedim(1, 2).flatten(2)
        matrix = mixed @ torch.cat([query, offset], dim=1) + torch.cat([proj, bias], dim=1)
        return torch.cat([matrix[..., :-1].flatten(1), matrix[..., -1]], dim=1)

    def folded(self, index: int) -> list[str]:
        """The weights in fold number `index`."""
        name = f"attentions.{index}"
        return [
            f"{name}.{layer}.{leaf}" for layer in ("qkv", "proj1") for leaf in ("weight", "bias")
        ]


def for_kernel(axis: Axis) -> list[Tensor]:
    """An axis as the kernels take it: the digits of all levels are one tensor."""
    return [axis.low, axis.high, axis.t, torch.stack(axis.digits)]
