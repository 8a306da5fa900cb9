"""Window attention (Swin) and permuted window attention (SRFormer) against SDPA and the reference.

SDPA gets every favour: its mask is made before the clock starts, and where no gradient of the
table is wanted the dense bias is added to it there as well. It still has to roll, partition and
merge, since no SDPA call takes a feature map.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import c2d_kernels
from bench.contenders import COMPILED, REFERENCE, Contender, kernels_of, peer
from bench.materialised import relative_index
from bench.workloads import Function, Workload, table

SWIN = {
    "quick": {
        "64x48 w8": {"height": 64, "width": 48},
        "64x48 w8 shift 4": {"height": 64, "width": 48, "shift": 4},
    },
    "full": {
        "320x184 w8": {"height": 184, "width": 320},
        "320x184 w8 shift 4": {"height": 184, "width": 320, "shift": 4},
        "320x192 w16 shift 8": {"height": 192, "width": 320, "window": 16, "shift": 8},
    },
}
PERMUTED = {
    "quick": {"64x48 w16 shift 8": {"height": 64, "width": 48, "shift": 8}},
    "full": {"320x192 w16 shift 8": {"height": 192, "width": 320, "shift": 8}},
}


def window_attention(
    height: int, width: int, window: int = 8, shift: int = 0, channels: int = 60, heads: int = 6
) -> dict[str, object]:
    """SwinIR-L's layer: 60 channels in 6 heads."""
    layer = {"window_size": window, "num_heads": heads, "shift": shift}

    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "qkv": normal(generator, 1, height, width, 3 * channels),
            "bias_table": normal(generator, (2 * window - 1) ** 2, heads),
        }

    def attention(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.window_attention(**tensors, **layer)

    return {
        "function": attention,
        "tensors": tensors,
        "half": frozenset({"qkv"}),
        "peers": {"SDPA": lambda tensors, backward: sdpa(tensors, backward, **layer)},
    }


def permuted_window_attention(
    height: int, width: int, window: int = 16, shift: int = 0, channels: int = 60, heads: int = 6
) -> dict[str, object]:
    """SRFormer-L's layer: keys and values of a quarter of the channels."""
    layer = {"window_size": window, "num_heads": heads, "shift": shift}

    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "q": normal(generator, 1, height, width, channels),
            "kv": normal(generator, 1, height, width, channels // 2),
            "bias_table": normal(generator, (window - 1) ** 2, heads),
        }

    def attention(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.permuted_window_attention(**tensors, **layer)

    return {"function": attention, "tensors": tensors, "half": frozenset({"q", "kv"})}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sdpa(
    tensors: dict[str, Tensor], backward: bool, window_size: int, num_heads: int, shift: int
) -> Function:
    """F.scaled_dot_product_attention over partitioned windows with a dense bias + mask."""
    qkv = tensors["qkv"]
    _, height, width, _ = qkv.shape
    index = relative_index(window_size)
    mask = shift_mask(height, width, window_size, shift).to(qkv.dtype) if shift else None

    def dense(bias_table: Tensor) -> Tensor:
        bias = rearrange(bias_table[index], "query key head -> 1 head query key").to(qkv.dtype)
        return bias if mask is None else bias + mask

    ready = None if backward else dense(tensors["bias_table"])

    def attention(tensors: dict[str, Tensor]) -> Tensor:
        qkv = tensors["qkv"]
        if shift:
            qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
        q, k, v = rearrange(
            qkv,
            "1 (wy y) (wx x) (three head d) -> three (wy wx) head (y x) d",
            three=3,
            head=num_heads,
            y=window_size,
            x=window_size,
        )
        bias = dense(tensors["bias_table"]) if ready is None else ready
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = rearrange(
            out,
            "(wy wx) head (y x) d -> 1 (wy y) (wx x) (head d)",
            wy=height // window_size,
            y=window_size,
        )
        return torch.roll(out, (shift, shift), (1, 2)) if shift else out

    return attention


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """(windows, 1, w*w, w*w): -100 where two tokens of a rolled window come from apart."""
    region = torch.zeros(height, width)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
        region[rows, columns] = number
    region = rearrange(region, "(wy y) (wx x) -> (wy wx) (y x)", y=window, x=window)
    return torch.where(region[:, None, :, None] == region[:, None, None, :], 0.0, -100.0)


@pytest.mark.race(
    workloads=table("window_attention", SWIN, window_attention),
    contenders=[REFERENCE, *kernels_of("window_attention"), peer("SDPA"), COMPILED],
)
def test_window_attention(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@pytest.mark.race(
    workloads=table("permuted_window_attention", PERMUTED, permuted_window_attention),
    contenders=[REFERENCE, *kernels_of("permuted_window_attention"), COMPILED],
)
def test_permuted_window_attention(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
