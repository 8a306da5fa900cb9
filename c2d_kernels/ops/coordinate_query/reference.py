"""The specification of the coordinate query, the HIIF family of decoders (2412.03748).

Any floating dtype, any device, differentiable by torch. Everything is computed in float32 (float64
for float64 features); the result has the image's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder_shape import DecoderShape
from .positions import Axis, Queries, axes, every_pair

Layers: TypeAlias = Mapping[str, Callable[[Tensor], Tensor]]
"""The decoder's layers by name, such as "mlps.0.fc1", each a function of a float32 map."""


def coordinate_query(
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor] | Layers,
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] | None = None,
) -> Tensor:
    """RGB at the queries: (B, H_out, W_out, 3) for a grid (or its region), (B, Q, 3) for coords.

    `weights` holds tensors, as `DecoderShape.weight_shapes` names them, or the layers themselves.
    """
    y, x, rel_cell = positions(features, shape.levels, queries)
    taps, base = gather(features, y, x), gather(image, y, x)
    values, _ = decode(taps, y, x, rel_cell, layers_of(weights, taps[0]), shape, moments)
    sample = sum(base[1:], base[0]).to(values)
    return queries.shaped((values + sample).to(image.dtype))


def coordinate_query_moments(
    features: Tensor,
    weights: Mapping[str, Tensor] | Layers,
    shape: DecoderShape,
    queries: Queries,
    moments: Sequence[Tensor] = (),
) -> Tensor:
    """(B, heads, d, d): sum over the queries of k^T v in attention number len(moments)."""
    y, x, rel_cell = positions(features, shape.levels, queries)
    taps = gather(features, y, x)
    _, moment = decode(
        taps, y, x, rel_cell, layers_of(weights, taps[0]), shape, moments, stop=len(moments)
    )
    assert moment is not None  # `moments` is shorter than the list of attentions
    return moment


def decode(
    taps: list[Tensor],
    y: Axis,
    x: Axis,
    rel_cell: Tensor,
    layers: Layers,
    shape: DecoderShape,
    moments: Sequence[Tensor] | None,
    stop: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The MLPs and attentions over (B, Q) queries: their RGB, or the moment of attention `stop`."""
    batch, count, _ = taps[0].shape
    rel_cell = rel_cell.to(taps[0])[:, None].expand(batch, count, 2)
    hidden = torch.cat([*taps, rel_cell], dim=-1)
    for level in range(shape.levels):
        digits = torch.stack([y.digits[level], x.digits[level]], dim=-1).expand(batch, count, 2)
        hidden = layers[f"mlps.{level}.norm"](torch.cat([hidden, digits], dim=-1))
        hidden = layers[f"mlps.{level}.fc2"](F.gelu(layers[f"mlps.{level}.fc1"](hidden)))
        if level >= shape.attentions:
            continue
        name = f"attentions.{level}"
        qkv = layers[f"{name}.qkv"](hidden).unflatten(-1, (3, shape.heads, shape.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, Q, head_dim) each
        if moments is None or level >= len(moments):
            moment = layers[f"{name}.k_norm"](k).transpose(-1, -2) @ layers[f"{name}.v_norm"](v)
            if level == stop:
                return hidden, moment
            moment = moment / count
        else:
            moment = moments[level].to(hidden)
        attended = (q @ moment).transpose(1, 2).flatten(2)
        attended = F.gelu(layers[f"{name}.proj1"](attended + hidden))
        hidden = layers[f"{name}.proj2"](attended) + hidden
    return hidden, None


def layers_of(weights: Mapping[str, Tensor] | Layers, like: Tensor) -> Layers:
    """The layers that these weights make, in the dtype of `like`; layers stay what they are."""
    tensors = {name: x.to(like) for name, x in weights.items() if isinstance(x, Tensor)}
    if not tensors:
        return cast(Layers, weights)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {name: _layer(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names}


def _layer(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """A Linear, or for a vector a LayerNorm."""
    if weight.dim() == 1:
        return lambda x: F.layer_norm(x, weight.shape, weight, bias, eps=1e-5)
    return lambda x: F.linear(x, weight, bias)


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
