"""The coordinate query by the native CPU kernels (csrc/coordinate_query).

The weights are folded here, once per call: LayerNorms' gains and offsets go into the Linear after
them, and after each pass over the queries the linear attention becomes one matrix with the Linears
around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

from . import native_training
from .decoder_shape import DecoderShape, grouped
from .native_decoder import Decoder
from .positions import Queries

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .decoder_shape import Flat

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
    op = torch.ops.c2d_native.coordinate_query.default
    picture = image.to(decoder.dtype)
    out = op(decoder.features, picture, *decoder.arguments(moments)).to(image.dtype)
    return queries.shaped(out)


def coordinate_query_moments(
    features: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] = (),
) -> Tensor:
    """As reference.coordinate_query_moments."""
    decoder = Decoder(features, weights, shape, queries)
    return decoder.moments(moments).to(decoder.dtype)


def _forward(
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    *rest: Unpack[tuple[Unpack[Flat], bool]],
) -> tuple[Tensor, Tensor]:
    shape, queries = grouped(features, *rest[:-1])
    trains = rest[-1]
    named = shape.named(weights)
    if trains:
        out, kept = native_training.forward(features, image, named, shape, queries)
        return queries.shaped(out.to(image.dtype)), kept
    out = coordinate_query(features, image, named, shape, queries)
    return out, features.new_empty(0, dtype=torch.promote_types(features.dtype, torch.float32))


def _backward(
    grad: Tensor,
    room: Tensor,
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    *rest: Unpack[tuple[Unpack[Flat], list[bool]]],
) -> Sequence[Tensor | None]:
    shape, queries = grouped(features, *rest[:-1])
    named = shape.named(weights)
    found = native_training.backward(grad, room, features, image, named, shape, queries, rest[-1])
    return [*found, None, None]  # positions have none


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
    native_ops=(
        "coordinate_query",
        "coordinate_query_image_backward",
        "coordinate_query_moments",
        "coordinate_query_positions",
        "coordinate_query_segment",
        "coordinate_query_segment_backward",
    ),
)
