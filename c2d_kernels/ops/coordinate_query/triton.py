"""The coordinate query by Triton kernels (triton_kernels.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from c2d_kernels import triton_support
from c2d_kernels.dispatch import Kernel

from .decoder_shape import DecoderShape, grouped
from .positions import Queries
from .triton_decoder import Decoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .decoder_shape import Flat

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
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] | None = None,
) -> Tensor:
    """As reference.coordinate_query."""
    decoder = Decoder(features, weights, shape, queries)
    if moments is None:
        moments = []
        while len(moments) < shape.attentions:
            moments.append(decoder.moments(moments) / queries.count)
    return queries.shaped(decoder.decode(image, moments))


def coordinate_query_moments(
    features: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] = (),
) -> Tensor:
    """As reference.coordinate_query_moments."""
    return Decoder(features, weights, shape, queries).moments(moments)


def _forward(
    features: Tensor, image: Tensor, weights: Sequence[Tensor], *flat: Unpack[Flat]
) -> Tensor:
    shape, queries = grouped(features, *flat)
    return coordinate_query(features, image, shape.named(weights), shape, queries)


def _backward(
    grad: Tensor,
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    *rest: Unpack[tuple[Unpack[Flat], list[bool]]],
) -> Sequence[Tensor | None]:
    from .triton_backward import backward

    shape, queries = grouped(features, *rest[:-1])
    found = backward(grad, features, image, shape.named(weights), shape, queries, rest[-1])
    return [*found, None, None]  # positions have none


kernel = Kernel("coordinate_query", "triton", can_run, _forward, _backward)
