"""Attention of cosines at the edges of its definition, and against SDPA of normalised heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import c2d_kernels

OPTIONS = {"window_size": 4, "num_heads": 2, "shift": 2}


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, 8, 12, 3 * 2 * 5), (49, 2), (2,)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[2] = tensors[2].abs() + 3
    return [x.to(dtype) for x in tensors]


def results(tensors: list[Tensor], backend: str) -> list[Tensor]:
    """The output and the gradients of its weighted sum."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    with c2d_kernels.backend(backend):
        out = c2d_kernels.cosine_window_attention(*leaves, **OPTIONS)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        gradients = torch.autograd.grad((out * weights).sum(), leaves)
    return [out.detach(), *gradients]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_window_is_sdpa_of_normalised_heads(backend: str) -> None:
    qkv, table, scale = inputs()
    qkv = qkv[:, :4, :4]
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    offset = places[:, None] - places + 3
    bias = table[offset[..., 0] * 7 + offset[..., 1]].permute(2, 0, 1)
    q, k, v = qkv.reshape(16, 3, 2, 5).permute(1, 2, 0, 3)
    q, k = F.normalize(q, dim=-1) * scale[:, None, None], F.normalize(k, dim=-1)
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], bias[None], scale=1.0)
    with c2d_kernels.backend(backend):
        found = c2d_kernels.cosine_window_attention(
            qkv, table, scale, window_size=4, num_heads=2, shift=0
        )
    torch.testing.assert_close(found, expected[0].transpose(0, 1).reshape(found.shape))


@pytest.mark.parametrize("change", ["q of 0", "k of 0", "scale of 0", "scale below 0", "huge"])
def test_edges_are_the_references(change: str) -> None:
    qkv, table, scale = inputs()
    if change in ("q of 0", "k of 0"):
        first = 0 if change == "q of 0" else 10
        qkv[0, 1, 2:5, first : first + 5] = 0
    elif change == "huge":
        qkv *= 1e30
    else:
        scale[1] = 0 if change == "scale of 0" else -2
    found, expected = (
        results([qkv, table, scale], "auto"),
        results([qkv, table, scale], "reference"),
    )
    for got, want in zip(found, expected, strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, want)


def test_scores_do_not_know_the_lengths() -> None:
    qkv, table, scale = inputs()
    stretched = torch.cat([7 * qkv[..., :10], qkv[..., 10:20] / 3, qkv[..., 20:]], -1)
    outputs = [
        c2d_kernels.cosine_window_attention(x, table, scale, **OPTIONS) for x in (qkv, stretched)
    ]
    torch.testing.assert_close(*outputs)


def test_half_precision_keeps_the_dtype_and_the_kernel_is_taken() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        qkv, table, scale = inputs(torch.float32)
        out = c2d_kernels.cosine_window_attention(qkv.to(dtype), table, scale, **OPTIONS)
        exact = c2d_kernels.cosine_window_attention(
            qkv.to(dtype).double(), table.double(), scale.double(), **OPTIONS
        )
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
