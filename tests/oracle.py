"""The float64 oracle of `c2d_kernels` (tests/kernels/oracle), called with tensors.

Every function has the name and the arguments of the public function it judges, takes tensors of any
dtype and answers in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tests import compiled

_FOLDER = "tests/kernels/oracle"
_HEADERS = sorted(Path(__file__).parent.glob("kernels/oracle/*.h"))


def _oracle() -> ModuleType:
    headers = tuple(f"{_FOLDER}/{header.name}" for header in _HEADERS)
    return compiled.module("c2d_oracle", f"{_FOLDER}/oracle.cpp", headers)


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().cpu().double().contiguous().numpy()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """y (B, D, L) and, always, the last state (B, D, N)."""
    arrays = [_array(t) for t in (u, delta, A, B, C, D, z, delta_bias)]
    y, last = _oracle().selective_scan(*arrays, delta_softplus)
    return _tensor(y), _tensor(last)


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    arguments = (_array(qkv), _array(bias_table), window_size, num_heads, shift, scale)
    return _tensor(_oracle().window_attention(*arguments))


def permuted_window_attention(
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    arrays = (_array(q), _array(kv), _array(bias_table))
    return _tensor(
        _oracle().permuted_window_attention(*arrays, window_size, num_heads, shift, scale)
    )


def _pair(window_size: int | tuple[int, int]) -> tuple[int, int]:
    return (window_size, window_size) if isinstance(window_size, int) else window_size


def channel_correlation(q: Tensor, v: Tensor, *, window_size: int | tuple[int, int]) -> Tensor:
    return _tensor(_oracle().channel_correlation(_array(q), _array(v), *_pair(window_size)))


def spatial_correlation(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    *,
    window_size: int | tuple[int, int],
    base_window: int,
    num_heads: int,
) -> Tensor:
    arrays = [_array(t) for t in (q, v, weight, weight_bias, bias_table)]
    return _tensor(
        _oracle().spatial_correlation(*arrays, *_pair(window_size), base_window, num_heads)
    )


def grid_positions(n: int, n_out: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells (n_out,), offsets (n_out,) and digits (n_out, levels) of an output axis."""
    cells, offsets, digits = _oracle().grid_positions(n, n_out, levels)
    return _tensor(cells), _tensor(offsets), _tensor(digits)


def coordinate_positions(coordinates: Tensor, n: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same for coordinates in [-1, 1] along an axis of n: (Q,), (Q,), (Q, levels)."""
    cells, offsets, digits = _oracle().coordinate_positions(_array(coordinates), n, levels)
    return _tensor(cells), _tensor(offsets), _tensor(digits)


def _pairs(y: Sequence[Tensor], x: Sequence[Tensor]) -> list[Tensor]:
    """Cells (Q, 2), offsets (Q, 2) and digits (Q, levels, 2) from those of the two axes."""
    return [torch.stack(pair, -1) for pair in zip(y, x, strict=True)]


def coordinate_query(
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor],
    *,
    levels: int,
    heads: int,
    attentions: int = 1,
    size: tuple[int, int] | None = None,
    coords: Tensor | None = None,
    cell: Tensor | None = None,
    rows: slice = slice(None),
    columns: slice = slice(None),
    moments: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The values, (B, h, w, 3) or (B, Q, 3), and each attention's sum of k^T v over the queries.

    `rows` and `columns` choose a part of the output grid; features and image are always whole.
    """
    batch, height, width, _ = features.shape
    if size is not None:
        i, j = torch.arange(size[0])[rows], torch.arange(size[1])[columns]
        shape = (len(i), len(j))
        y = [t[i.repeat_interleave(len(j))] for t in grid_positions(height, size[0], levels)]
        x = [t[j.repeat(len(i))] for t in grid_positions(width, size[1], levels)]
        queries = [_pairs(y, x)] * batch
        rel_cell = 2 * torch.tensor([[height, width]] * batch).double() / torch.tensor(size)
    else:
        shape = coords.shape[1:2]
        queries = [
            _pairs(
                coordinate_positions(points[:, 0], height, levels),
                coordinate_positions(points[:, 1], width, levels),
            )
            for points in coords
        ]
        rel_cell = cell.double() * torch.tensor([height, width])
    cells, offsets, digits = (torch.stack(part) for part in zip(*queries, strict=True))
    values, sums = _oracle().coordinate_query(
        _array(features),
        _array(image),
        [_array(w) for w in weights.values()],
        levels,
        heads,
        attentions,
        cells.numpy(),
        offsets.numpy(),
        digits.numpy(),
        _array(rel_cell),
        _array(torch.stack(list(moments))) if moments is not None else None,
    )
    return _tensor(values).unflatten(1, shape), list(_tensor(sums))
