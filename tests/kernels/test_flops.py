"""FLOP formulas: numbers worked out by hand, and what torch's counter reports for the ops."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from c2d_kernels.ops.attention_branch import op as attention_branch
from c2d_kernels.ops.channel_correlation import op as channel_correlation
from c2d_kernels.ops.conv_ffn import op as conv_ffn
from c2d_kernels.ops.coordinate_query import op as coordinate_query
from c2d_kernels.ops.dual_features import op as dual_features
from c2d_kernels.ops.res_post_norm import op as res_post_norm
from c2d_kernels.ops.selective_scan import op as selective_scan
from c2d_kernels.ops.spatial_correlation import op as spatial_correlation
from c2d_kernels.ops.window_attention import op as window_attention
from c2d_kernels.ops.window_layer import op as window_layer
from tests.kernels.cases import SMALL, Case

FORMULAS = [  # formula, value by hand, what it is
    (selective_scan.flops(1, 48, 100, 8), 18 * 48 * 100 * 8, "18 B L D N"),
    (window_attention.flops(1, 64, 64, 60, 8), 2 * 2 * 4096 * 64 * 60, "q k^T and its product"),
    (window_attention.permuted_flops(1, 64, 64, 60, 16), 2 * 2 * 4096 * 64 * 60, "a quarter"),
    (
        window_layer.flops(1, 64, 64, 60, 120, 8),
        2 * 4096 * (60 * 180 + 2 * 64 * 60 + 60 * 60 + 2 * 60 * 120),
        "qkv, attention, projection, MLP",
    ),
    (
        attention_branch.flops(1, 64, 64, 60, 8, False),
        2 * 4096 * (60 * 180 + 2 * 64 * 60 + 60 * 60),
        "qkv, attention, projection",
    ),
    (
        attention_branch.flops(1, 64, 64, 60, 16, True),
        2 * 4096 * (60 * 90 + 2 * 64 * 60 + 60 * 60),
        "q, kv, permuted attention, projection",
    ),
    (
        res_post_norm.flops(1, 64, 64, 60, 60, 120),
        2 * 4096 * (60 * 60 + 2 * 60 * 120),
        "projection and MLP",
    ),
    (
        dual_features.flops(1, 64, 64, 60, 12),
        2 * 4096 * (60 * 60 + 2 * 60 * 12 + 9 * 12 * 12),
        "two branches, one with a 3x3",
    ),
    (conv_ffn.flops(1, 64, 64, 60, 120), 2 * 4096 * (2 * 60 * 120 + 25 * 120), "MLP and 5x5"),
    (channel_correlation.flops(1, 64, 64, 30), 2 * 2 * 4096 * 30 * 30, "q^T v and v M^T"),
    (
        spatial_correlation.flops(1, 64, 64, 30, 8, 8),
        2 * 4096 * 30 + 2 * 2 * 4096 * 64 * 30,
        "p, q p^T and the map with p",
    ),
    (
        # HIIF-L: (260x64 + 64x64) + (66x64 + 64x64) + (66x64 + 64x3) of the MLPs, then qkv 64x192,
        # k^T v and q M 64x16 each, two projections 64x64.
        coordinate_query.flops(1280 * 720, 64, 3, 4, 1),
        2 * 1280 * 720 * (20736 + 8320 + 4416 + 12288 + 2048 + 8192),
        "HIIF-L at 1280x720",
    ),
]


@pytest.mark.parametrize(
    ("value", "by_hand"), [row[:2] for row in FORMULAS], ids=[row[2] for row in FORMULAS]
)
def test_formula(value: int, by_hand: int) -> None:
    assert value == by_hand


SMALL_FLOPS = {  # the definition's operations in the small cases
    "scan": 18 * 2 * 3 * 5 * 2,
    "attention": 4 * 24 * 4 * 4,
    "permuted": 32 * 16 * 4,
    "layer": 2 * 24 * (4 * 12 + 2 * 4 * 4 + 4 * 4 + 2 * 4 * 6),
    "branch": 2 * 24 * (4 * 12 + 2 * 4 * 4 + 4 * 4),
    "branch-permuted": 2 * 32 * (4 * 6 + 2 * 4 * 4 + 4 * 4),
    "post-norm": 2 * 6 * 4 * (6 + 2 * 5),
    "post-norm-no-mlp": 2 * 6 * 4 * 6,
    "conv-ffn": 2 * 12 * 5 * (2 * 4 + 25),
    "dual": 2 * 12 * (4 * 4 + 2 * 4 * 3 + 9 * 9),
    "channel": 4 * 2 * 20 * 3 * 3,
    "spatial": 2 * 16 * 4 * (1 + 2 * 4),
    "query-coords": 2 * 10 * (20 * 4 + 16 + 6 * 4 + 4 * 3 + 4 * 12 + 2 * 16 + 2 * 4 * 2),
}


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_counter_sees_the_definition(case: Case, take) -> None:
    tensors = {n: x.requires_grad_(n in case.shapes) for n, x in case.tensors().items()}
    with take(case, "op"), FlopCounterMode(display=False) as forward:
        loss = case.outputs(tensors)[0].sum()
    with take(case, "op"), FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() == SMALL_FLOPS[case.name]
    assert backward.get_total_flops() == 2 * SMALL_FLOPS[case.name]


@pytest.mark.parametrize("name", ["attention", "permuted", "channel", "query-coords"])
def test_reference_does_what_the_definition_says(name: str, take) -> None:
    case = next(case for case in SMALL if case.name == name)
    # The small channel case has cut windows, which plain ATen pads: give it whole ones.
    tensors = {n: torch.zeros(2, 8, 6, 3) for n in "qv"} if name == "channel" else case.tensors()
    expected = channel_correlation.flops(2, 8, 6, 3) if name == "channel" else None
    with take(case, "reference"), FlopCounterMode(display=False) as counter:
        case.call(tensors)
    assert counter.get_total_flops() == (expected or SMALL_FLOPS[name])
