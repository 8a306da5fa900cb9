"""Window attention (Swin), of cosines (Swin V2) and permuted (SRFormer): SDPA and the reference.

SDPA gets every favour: its mask is made before the clock starts, and where no gradient of the
table is wanted the dense bias is added to it there as well. It still has to roll, partition and
merge, since no SDPA call takes a feature map. FlexAttention reads the table in a function of its
own, compiled; see attention_peers.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench import machine
from bench.attention_peers import GPU_HEAD_DIM, flex_attention, sdpa, sdpa_of_cosines
from bench.contenders import (
    COMPILERS,
    REFERENCE,
    Contender,
    kept_out_of_compilation,
    kernels_of,
    peer,
)
from bench.workloads import Workload, in_one_row_on_a_cpu, normal, table

SWIN = {
    "quick": {
        "64x48 w8": {"height": 64, "width": 48},
        "64x48 w8 shift 4": {"height": 64, "width": 48, "shift": 4},
    },
    "full": {
        "320x184 w8 shift 4": {"height": 184, "width": 320, "shift": 4},
    },
}
WIDE = {
    "full": {
        "320x192 w16 shift 8": {"height": 192, "width": 320, "window": 16, "shift": 8},
    },
}
PERMUTED = {
    "quick": {"64x48 w16 shift 8": {"height": 64, "width": 48, "shift": 8}},
    "full": {"320x192 w16 shift 8": {"height": 192, "width": 320, "shift": 8}},
}


def window_attention(
    height: int, width: int, window: int = 8, shift: int = 0, channels: int = 60, heads: int = 6
) -> dict[str, Any]:
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
        "peers": {
            "SDPA": lambda tensors, backward: sdpa(tensors, backward, **layer),
            "SDPA, heads of 16": lambda tensors, backward: sdpa(
                tensors, backward, **layer, head_dim=GPU_HEAD_DIM
            ),
            "FlexAttention": lambda tensors, backward: flex_attention(tensors, **layer),
        },
    }


def cosine_window_attention(
    height: int, width: int, window: int = 8, shift: int = 0, channels: int = 60, heads: int = 6
) -> dict[str, object]:
    """The light Swin2SR's layer; its scales begin at 10."""
    layer = {"window_size": window, "num_heads": heads, "shift": shift}

    plain = window_attention(height, width, window, shift, channels, heads)

    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        return {**plain["tensors"](generator), "cosine_scale": 10 + normal(generator, heads)}

    return {
        **plain,
        "function": lambda tensors: c2d_kernels.cosine_window_attention(**tensors, **layer),
        "tensors": tensors,
        "peers": {"SDPA": lambda tensors, backward: sdpa_of_cosines(tensors, backward, **layer)},
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


def no_padding_on_a_cpu(workload: Workload) -> str | None:
    if machine.device().type == "cpu":
        return "padded heads meet the fast kernels of a GPU; a CPU has none that want them"
    return None


def no_gradients_on_a_cpu(workload: Workload) -> str | None:
    if workload.backward and machine.device().type == "cpu":
        return "FlexAttention has no backward on a CPU"
    return kept_out_of_compilation(workload)


@pytest.mark.race(
    workloads=[
        *table("window_attention", SWIN, window_attention),
        *table("window_attention", WIDE, window_attention, **in_one_row_on_a_cpu()),
    ],
    contenders=[
        REFERENCE,
        *kernels_of("window_attention"),
        peer("SDPA"),
        replace(peer("SDPA, heads of 16", absent=no_padding_on_a_cpu), full_only=True),
        replace(peer("FlexAttention", absent=no_gradients_on_a_cpu), full_only=True),
        *COMPILERS,
    ],
)
def test_window_attention(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@pytest.mark.race(
    workloads=table("permuted_window_attention", PERMUTED, permuted_window_attention),
    contenders=[REFERENCE, *kernels_of("permuted_window_attention"), *COMPILERS],
)
def test_permuted_window_attention(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)


@pytest.mark.race(
    workloads=table("cosine_window_attention", SWIN, cosine_window_attention),
    contenders=[REFERENCE, *kernels_of("cosine_window_attention"), peer("SDPA"), *COMPILERS],
)
def test_cosine_window_attention(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
