"""The coordinate query by the native CPU kernels (csrc/coordinate_query).

The weights are folded here, once a call: LayerNorms' gains and offsets go into the Linear after
them, and after each pass over the queries the linear attention becomes one matrix with the Linears
around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import native
from ..dispatch import Kernel
from . import reference
from .positions import Axis, Region, axes, cell_in_pixels

MAX_WIDTH, MAX_LEVELS = 256, 16

# Backwards the kernel computes most of it again instead of keeping it: a quarter more products
# than the reference, which pays while the products are few beside what goes through memory.
# Measured at 64, 96, 128, 192 and 256 channels, three levels, four images: 1.5, 1.5, 1.3, 0.9 and
# 0.9 times as fast (HIIF-L's width and HIIF's); 16 images of 64 channels 2.0; at 128, six levels,
# 1.2.
MAX_TRAINING_WIDTH = 128


def can_run(
    features: Tensor, image: Tensor | None, weights: object, levels: int, *_: object
) -> str | None:
    """Why the kernel cannot decode these, or None."""
    if native.missing is not None:
        return native.missing
    if features.device.type != "cpu":
        return f"it runs on CPU tensors, and these are on {features.device}"
    if features.shape[-1] > MAX_WIDTH or levels > MAX_LEVELS:
        return f"it decodes at most {MAX_WIDTH} channels in {MAX_LEVELS} levels"
    if image is not None and image.dtype == torch.float64 != features.dtype:
        return "it takes a float64 image beside float64 features only"
    return None


def coordinate_query(
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor],
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None = None,
    coords: Tensor | None = None,
    cell: Tensor | None = None,
    region: Region | None = None,
    moments: Sequence[Tensor] | None = None,
) -> Tensor:
    """As reference.coordinate_query."""
    decoder = Decoder(features, weights, levels, heads, attentions, size, coords, cell, region)
    if moments is None:
        moments = []
        while len(moments) < attentions:
            moments.append(decoder.moments(moments) / decoder.queries)
    op = torch.ops.c2d_native.coordinate_query.default
    picture = image.to(decoder.dtype)
    out = op(decoder.features, picture, *decoder.arguments(moments)).to(image.dtype)
    return out if size is None else out.reshape(-1, *reference.grid_shape(size, region), 3)


def coordinate_query_moments(
    features: Tensor,
    weights: Mapping[str, Tensor],
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None = None,
    coords: Tensor | None = None,
    cell: Tensor | None = None,
    region: Region | None = None,
    moments: Sequence[Tensor] = (),
) -> Tensor:
    """As reference.coordinate_query_moments."""
    decoder = Decoder(features, weights, levels, heads, attentions, size, coords, cell, region)
    return decoder.moments(moments).to(decoder.dtype)


class Decoder:
    """Folded weights and positions, in the form in which the kernel takes them."""

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
    ) -> None:
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        self.features = features.to(self.dtype)
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.numbers = (levels, heads, attentions)
        if size is None:
            op = torch.ops.c2d_native.coordinate_query_positions.default
            places = op(coords.detach(), self.features, levels)
            rel_cell = cell_in_pixels(cell, *features.shape[1:3])
            self.queries = coords.shape[1]
        else:
            y, x, rel_cell = axes(self.features, levels, size, coords, cell, region)
            places = [*_flat(y), *_flat(x)]
            self.queries = y.t.numel() * x.t.numel()
        self.positions = [*places, rel_cell.to(self.dtype)]
        self.line = self._line().to(self.dtype)

    def moments(self, before: Sequence[Tensor]) -> Tensor:
        """Sums of k^T v in attention number len(before), float64, given the means before it."""
        op = torch.ops.c2d_native.coordinate_query_moments.default
        return op(self.features, *self.arguments(before))

    def arguments(self, moments: Sequence[Tensor]) -> list[Tensor | int]:
        """What both native operators take after the features (and the image)."""
        return [
            self.line.detach(),
            self.folds(moments).to(self.dtype),
            *self.positions,
            *self.numbers,
        ]

    def _line(self) -> Tensor:
        """All weights in one line, in the order of Decoder in coordinate_query.cpp."""
        levels, _, attentions = self.numbers
        width, weights, parts = self.features.shape[-1], self.weights, []
        for level in range(levels):
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
        for index in range(attentions):
            name = f"attentions.{index}"
            parts += [weights[f"{name}.qkv.{leaf}"][width:] for leaf in ("weight", "bias")]
            for norm in ("k_norm", "v_norm"):
                parts += [weights[f"{name}.{norm}.{leaf}"] for leaf in ("weight", "bias")]
            parts += [weights[f"{name}.proj2.{leaf}"] for leaf in ("weight", "bias")]
        return torch.cat([part.flatten() for part in parts])

    def folds(self, moments: Sequence[Tensor]) -> Tensor:
        """One fold after the other, (attentions done, B, width^2 + width), float64."""
        batch, width = self.features.shape[0], self.features.shape[-1]
        if len(moments) == 0:
            return self.line.new_empty((0, batch, width * width + width), dtype=torch.float64)
        return torch.stack([self.fold(index, moment) for index, moment in enumerate(moments)])

    def fold(self, index: int, moment: Tensor) -> Tensor:
        """proj1 of q M + x in attention `index` as one Linear of x, (B, width^2 + width)."""
        width, heads = self.features.shape[-1], self.numbers[1]
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


def _flat(axis: Axis) -> list[Tensor]:
    return [axis.low, axis.high, axis.t, torch.stack(axis.digits)]


def _forward(
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None,
    coords: Tensor | None,
    cell: Tensor | None,
    trains: bool,
) -> tuple[Tensor, Tensor]:
    numbers = (levels, heads, attentions)
    if trains:
        from .native_training import forward

        out, kept = forward(features, image, weights, *numbers, size, coords, cell)
        out = out.to(image.dtype)
        return out if size is None else out.reshape(-1, *size, 3), kept
    names = reference.weight_shapes(features.shape[-1], *numbers)
    named = dict(zip(names, weights, strict=True))
    out = coordinate_query(features, image, named, *numbers, size, coords, cell)
    return out, features.new_empty(0, dtype=torch.promote_types(features.dtype, torch.float32))


def _backward(*args: object) -> Sequence[Tensor | None]:
    from .native_training import backward

    return backward(*args)


def _trains_slower(features: Tensor, *_: object) -> bool:
    return features.shape[-1] > MAX_TRAINING_WIDTH


kernel = Kernel(
    "coordinate_query",
    "cpu",
    can_run,
    _forward,
    _backward,
    keeps=True,
    trains_slower=_trains_slower,
)
