"""The specification of the coordinate query, the HIIF family of decoders (2412.03748).

Any floating dtype, any device, differentiable by torch. Everything is computed in float32 (float64
for float64 features); the result has the image's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .positions import Axis, Region, free_axis, grid_axis


def weight_shapes(
    width: int, levels: int, heads: int, attentions: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the decoder's weights, in the order the operator takes them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for level in range(levels):
        inputs = 4 * width + 4 if level == 0 else width + 2
        outputs = 3 if level == levels - 1 else width
        shapes[f"mlps.{level}.norm.weight"] = shapes[f"mlps.{level}.norm.bias"] = (inputs,)
        shapes[f"mlps.{level}.fc1.weight"] = (width, inputs)
        shapes[f"mlps.{level}.fc1.bias"] = (width,)
        shapes[f"mlps.{level}.fc2.weight"] = (outputs, width)
        shapes[f"mlps.{level}.fc2.bias"] = (outputs,)
    for index in range(attentions):
        shapes[f"attentions.{index}.qkv.weight"] = (3 * width, width)
        shapes[f"attentions.{index}.qkv.bias"] = (3 * width,)
        for norm in ("k_norm", "v_norm"):
            shapes[f"attentions.{index}.{norm}.weight"] = (width // heads,)
            shapes[f"attentions.{index}.{norm}.bias"] = (width // heads,)
        for proj in ("proj1", "proj2"):
            shapes[f"attentions.{index}.{proj}.weight"] = (width, width)
            shapes[f"attentions.{index}.{proj}.bias"] = (width,)
    return shapes


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
    """RGB at the queries: (B, H_out, W_out, 3) for a grid (or its region), (B, Q, 3) for coords."""
    y, x, rel_cell = queries(features, levels, size, coords, cell, region)
    taps, base = gather(features, y, x), gather(image, y, x)
    values, _ = decode(taps, y, x, rel_cell, weights, levels, heads, attentions, moments, None)
    out = (values + sum(base).to(values)).to(image.dtype)
    return out if size is None else out.reshape(image.shape[0], *grid_shape(size, region), 3)


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
    """(B, heads, d, d): sum over the queries of k^T v in attention number len(moments)."""
    y, x, rel_cell = queries(features, levels, size, coords, cell, region)
    taps = gather(features, y, x)
    return decode(taps, y, x, rel_cell, weights, levels, heads, attentions, moments, len(moments))[
        1
    ]


def decode(
    taps: list[Tensor],
    y: Axis,
    x: Axis,
    rel_cell: Tensor,
    weights: Mapping[str, Tensor],
    levels: int,
    heads: int,
    attentions: int,
    moments: Sequence[Tensor] | None,
    stop: int | None,
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
    for level in range(levels):
        digits = torch.stack([y.digits[level], x.digits[level]], dim=-1).expand(batch, count, 2)
        hidden = norm(f"mlps.{level}.norm", torch.cat([hidden, digits], dim=-1))
        hidden = linear(f"mlps.{level}.fc2", F.gelu(linear(f"mlps.{level}.fc1", hidden)))
        if level >= attentions:
            continue
        name = f"attentions.{level}"
        qkv = linear(f"{name}.qkv", hidden).unflatten(-1, (3, heads, hidden.shape[-1] // heads))
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


def queries(
    features: Tensor,
    levels: int,
    size: Sequence[int] | None,
    coords: Tensor | None,
    cell: Tensor | None,
    region: Region | None,
) -> tuple[Axis, Axis, Tensor]:
    """Both axes, each of shape (1 or B, Q), and rel_cell (1 or B, 2) in LR pixels."""
    height, width = features.shape[1:3] if region is None else region.lr_size
    dtype = torch.promote_types(features.dtype, torch.float32)
    if size is None:
        y, x = coords.detach().unbind(-1)
        y, x = free_axis(y, height, levels, dtype), free_axis(x, width, levels, dtype)
        return y, x, torch.stack([cell[:, 0] * height, cell[:, 1] * width], dim=-1).detach()
    rows, columns = ((0, size[0]), (0, size[1])) if region is None else region[:2]
    y = grid_axis(*rows, size[0], height, levels, dtype, features.device)
    x = grid_axis(*columns, size[1], width, levels, dtype, features.device)
    if region is not None:
        top, left = region.lr_origin
        y, x = (
            axis._replace(low=axis.low - origin, high=axis.high - origin)
            for axis, origin in ((y, top), (x, left))
        )
    # Shapes, not len(): that would fix a symbolic size when exporting.
    across, down = x.t.shape[0], y.t.shape[0]
    y = _map(y, lambda value: value[:, None].expand(down, across).reshape(1, -1))
    x = _map(x, lambda value: value[None].expand(down, across).reshape(1, -1))
    # new_tensor would freeze a symbolic size into the graph; full keeps it.
    rel = [
        torch.full((1,), 2 * a / b, dtype=dtype, device=features.device)
        for a, b in ((height, size[0]), (width, size[1]))
    ]
    return y, x, torch.stack(rel, dim=-1)


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


def grid_shape(size: Sequence[int], region: Region | None) -> tuple[int, int]:
    """Rows and columns that a grid query returns."""
    if region is None:
        return size[0], size[1]
    return region.rows[1] - region.rows[0], region.columns[1] - region.columns[0]


def _map(axis: Axis, change) -> Axis:
    return Axis(
        change(axis.low), change(axis.high), change(axis.t), [change(d) for d in axis.digits]
    )
