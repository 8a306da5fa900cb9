"""The coordinate query by Triton kernels (triton_kernels.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ... import triton_support
from ...dispatch import Kernel
from . import reference
from .positions import Region
from .triton_decoder import Decoder

MAX_WIDTH, MAX_LEVELS = 256, 16


def can_run(
    features: Tensor, image: Tensor | None, weights: object, levels: int, *_: object
) -> str | None:
    """Why the kernels cannot decode these, or None."""
    if features.shape[-1] > MAX_WIDTH or levels > MAX_LEVELS:
        return f"it decodes at most {MAX_WIDTH} channels in {MAX_LEVELS} levels"
    if image is not None and image.dtype == torch.float64 != features.dtype:
        return "it takes a float64 image beside float64 features only"
    if features.shape[-1] > 64 and features.dtype == torch.float32:
        return f"it decodes at most 64 channels in float32, and these are {features.shape[-1]}"
    return triton_support.refusal(features)


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
    out = decoder.decode(image, moments)
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
    return decoder.moments(moments)


def _forward(
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    levels: int,
    heads: int,
    attentions: int,
    *where: Sequence[int] | Tensor | None,
) -> Tensor:
    names = reference.weight_shapes(features.shape[-1], levels, heads, attentions)
    named = dict(zip(names, weights, strict=True))
    return coordinate_query(features, image, named, levels, heads, attentions, *where)


def _backward(*args: object) -> Sequence[Tensor | None]:
    from .triton_backward import backward

    return backward(*args)


kernel = Kernel("coordinate_query", "triton", can_run, _forward, _backward)
