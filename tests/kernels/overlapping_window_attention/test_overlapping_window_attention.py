"""Overlapping and rectangular windows against loops over pixels, and window_attention on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import c2d_kernels
from c2d_kernels import native
from tests.kernels.cases import CASES
from tests.kernels.overlapping_window_attention.cases import AWKWARD, SMALL


def by_pixels(q, k, v, bias, window, heads, overlap, shift, scale, labels=None):
    """One query after the other, in NumPy."""
    batch, height, width, channels = q.shape
    depth = channels // heads
    out = np.zeros_like(q)
    for b, y, x in np.ndindex(batch, height, width):
        # the query's window begins at (top, left) of the map rolled by shift
        rolled = (y - shift[0]) % height, (x - shift[1]) % width
        top, left = (at - at % side for at, side in zip(rolled, window, strict=True))
        n = (rolled[0] - top) * window[1] + rolled[1] - left
        for head in range(heads):
            at = slice(head * depth, (head + 1) * depth)
            scores, values = [], []
            sides = [side + 2 * more for side, more in zip(window, overlap, strict=True)]
            for m, (dy, dx) in enumerate(np.ndindex(*sides)):
                row, column = top - overlap[0] + dy, left - overlap[1] + dx
                inside = 0 <= row < height and 0 <= column < width
                key = value = np.zeros(depth)
                if inside:
                    token = b, (row + shift[0]) % height, (column + shift[1]) % width
                    key, value = k[token][at], v[token][at]
                # both wrap around, or neither does: else they were not neighbours
                wraps = [
                    (mine + moved >= length) != (other + moved >= length)
                    for mine, other, moved, length in zip(
                        rolled, (row, column), shift, (height, width), strict=True
                    )
                ]
                if inside and labels is not None:
                    wraps.append(labels[y, x] != labels[token[1:]])
                masked = inside and any(wraps)
                score = scale * q[b, y, x][at] @ key + bias[head, n, m] - 100.0 * masked
                scores.append(score)
                values.append(value)
            power = np.exp(np.array(scores) - max(scores))
            out[b, y, x][at] = (power / power.sum()) @ np.array(values)
    return out


@pytest.mark.parametrize("case", SMALL + AWKWARD, ids=lambda case: case.name)
def test_every_form_equals_loops_over_pixels(case):
    tensors = case.tensors()
    options = case.options
    depth = tensors["q"].shape[-1] // options["num_heads"]
    expected = by_pixels(
        *(tensors[name].numpy() for name in ("q", "k", "v", "bias")),
        options["window_size"],
        options["num_heads"],
        options["overlap"],
        options["shift"],
        depth**-0.5,
        tensors["regions"].numpy() if "regions" in tensors else None,
    )
    for backend in ("reference", "auto"):
        with c2d_kernels.backend(backend):
            found = case.call(tensors)
        assert np.allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_squares_are_window_attention():
    torch.manual_seed(0)
    qkv = torch.randn(2, 8, 12, 24, dtype=torch.float64, requires_grad=True)
    table = torch.randn(49, 2, dtype=torch.float64, requires_grad=True)
    options = {"num_heads": 2, "scale": 0.4}
    expected = c2d_kernels.window_attention(qkv, table, window_size=4, shift=2, **options)
    keys = torch.arange(4)
    offset = keys[:, None] - keys + 3
    index = (offset[:, None, :, None] * 7 + offset[None, :, None, :]).reshape(16, 16)
    dense = table[index].permute(2, 0, 1)
    found = c2d_kernels.window_attention(qkv, dense, window_size=4, shift=2, **options)
    assert torch.allclose(found, expected, rtol=1e-12)
    grad = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, (qkv, table), grad),
        torch.autograd.grad(expected, (qkv, table), grad),
        strict=True,
    )
    assert all(torch.allclose(ours, theirs, rtol=1e-10) for ours, theirs in pairs)
    pair = c2d_kernels.window_attention(qkv, table, window_size=(4, 4), shift=(2, 2), **options)
    assert torch.equal(pair, expected)


@pytest.mark.parametrize("shift", [(0, 0), (1, 3), (0, 2)])
def test_a_table_serves_rectangles(shift):
    torch.manual_seed(0)
    window, heads = (2, 4), 3
    qkv = torch.randn(1, 4, 8, 27, dtype=torch.float64)
    table = torch.randn(3 * 7, heads, dtype=torch.float64)
    dense = torch.empty(heads, 8, 8, dtype=torch.float64)
    for n, m in np.ndindex(8, 8):
        (y, x), (Y, X) = divmod(n, 4), divmod(m, 4)
        dense[:, n, m] = table[(y - Y + 1) * 7 + x - X + 3]
    found = c2d_kernels.window_attention(
        qkv, table, window_size=window, num_heads=heads, shift=shift
    )
    expected = by_pixels(
        *(x.numpy() for x in (*qkv.chunk(3, -1), dense)),
        window,
        heads,
        (0, 0),
        shift,
        3**-0.5,
    )
    assert np.allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_rectangles_table_has_its_own_size():
    qkv, table = torch.zeros(1, 4, 8, 12), torch.zeros(49, 2)
    with pytest.raises(ValueError, match=r"bias_table must have the shape \(\(2h-1\)\(2w-1\), h"):
        c2d_kernels.window_attention(qkv, table, window_size=(2, 4), num_heads=2)


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
@pytest.mark.parametrize("label", [-1, 2**20])
def test_a_label_out_of_range_is_refused(label):
    case = CASES["regions"]
    tensors = case.tensors()
    tensors["regions"][3, 4] = label
    with pytest.raises(RuntimeError, match="regions must hold integers from 0 to 1048575"):
        case.call(tensors)
