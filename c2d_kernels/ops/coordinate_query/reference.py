"""The specification of the coordinate query, the HIIF family of decoders (2412.03748).

Any floating dtype, any device, differentiable by torch. Everything is computed in float32 (float64
for float64 features); the result has the image's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder_shape import DecoderShape
from .positions import Axis, Queries, axes, every_pair


def coordinate_query(
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] | None = None,
) -> Tensor:
    """RGB at the queries: (B, H_out, W_out, 3) for a grid (or its region), (B, Q, 3) for coords."""
    y, x, rel_cell = positions(features, shape.levels, queries)
    taps, base = gather(features, y, x), gather(image, y, x)
    values, _ = decode(taps, y, x, rel_cell, weights, shape, moments)
    sample = sum(base[1:], base[0]).to(values)
    return queries.shaped((values + sample).to(image.dtype))


def coordinate_query_moments(
    features: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] = (),
) -> Tensor:
    """(B, heads, d, d): sum over the queries of k^T v in attention number len(moments)."""
    y, x, rel_cell = positions(features, shape.levels, queries)
    taps = gather(features, y, x)
    _, moment = decode(taps, y, x, rel_cell, weights, shape, moments, stop=len(moments))
    assert moment is not None  # there is an attention of this number
    return moment


def decode(
    taps: list[Tensor],
    y: Axis,
    x: Axis,
    rel_cell: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    moments: Sequence[Tensor] | None,
    stop: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The MLPs and attentions over (B, Q) queries: their RGB, or the moment of attention `stop`."""
    batch, count, _ = taps[0].shape
    weights = {name: weight.to(taps[0]) for name, weight in weights.items()}

    def norm(name: str, value: Tensor) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(value, weight.shape, weight, bias, eps=1e-5)

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    rel_cell = rel_cell.to(taps[0])[:, None].expand(batch, count, 2)
    hidden = torch.cat([*taps, rel_cell], dim=-1)
    for level in range(shape.levels):
        digits = torch.stack([y.digits[level], x.digits[level]], dim=-1).expand(batch, count, 2)
        hidden = norm(f"mlps.{level}.norm", torch.cat([hidden, digits], dim=-1))
        hidden = linear(f"mlps.{level}.fc2", F.gelu(linear(f"mlps.{level}.fc1", hidden)))
        if level >= shape.attentions:
            continue
        name = f"attentions.{level}"
        qkv = linear(f"{name}.qkv", hidden).unflatten(-1, (3, shape.heads, shape.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, Q, head_dim) each
        if moments is None or level >= len(moments):
            moment = norm(f"{name}.k_norm", k).transpose(-1, -2) @ norm(f"{name}.v_norm", v)
            if level == stop:
                return hidden, moment
            moment = moment / count
        else:
            moment = moments[level].to(hidden)
        attended = (q @ moment).transpose(1, 2).flatten(2)
        attended = F.gelu(linear(f"{name}.proj1", attended + hidden))
        hidden = linear(f"{name}.proj2", attended) + hidden
    return hidden, None


def positions(features: Tensor, levels: int, queries: Queries) -> tuple[Axis, Axis, Tensor]:
    """Both axes, each of shape (1 or B, Q), and rel_cell (1 or B, 2) in LR pixels."""
    y, x, rel_cell = axes(features, levels, queries)
    if queries.size is not None:
        y, x = every_pair(y, x)
    return y, x, rel_cell


def gather(lr_map: Tensor, y: Axis, x: Axis) -> list[Tensor]:
    """The four neighbours (00, 01, 10, 11) of each query, weighted bilinearly: (B, Q, C) each."""
    batch, height, width, channels = lr_map.shape
    table = lr_map.to(torch.promote_types(lr_map.dtype, y.t.dtype)).reshape(-1, channels)
    origin = torch.arange(batch, device=lr_map.device)[:, None] * (height * width)
    taps = []
    for row, weight_y in ((y.low, 1 - y.t), (y.high, y.t)):
        for column, weight_x in ((x.low, 1 - x.t), (x.high, x.t)):
            # embedding is the gather whose backward is quickest on a CPU (11x index_select's).
            values = F.embedding(origin + row * width + column, table)
            taps.append(values * (weight_y * weight_x)[..., None])
    return taps
