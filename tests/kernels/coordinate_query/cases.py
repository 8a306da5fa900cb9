"""The coordinate query in the tables of the shared tests."""

from __future__ import annotations

import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import Region
from c2d_kernels.ops.coordinate_query.decoder_shape import DecoderShape
from c2d_kernels.ops.coordinate_query.op import flops
from tests.kernels.rows import B, Case, Export, Formula, H, Q, W, grow, refusals, to


def query(
    name: str,
    batch: int,
    height: int,
    width: int,
    *,
    size: tuple[int, int] | None = None,
    queries: int | None = None,
    channels: int = 4,
    attentions: int = 1,
) -> Case:
    numbers = {"levels": attentions + 1, "heads": 2, "attentions": attentions}

    def coords() -> Tensor:
        generator = torch.Generator().manual_seed(7)
        shape = (batch, queries, 2)
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    fixed = {
        "coords": coords,
        "cell": lambda: torch.tensor([[0.11, 0.07]], dtype=torch.float64).repeat(batch, 1),
    }
    return Case(
        name,
        "coordinate_query",
        {
            "features": (batch, height, width, channels),
            "image": (batch, height, width, 3),
            **c2d_kernels.coordinate_query_weight_shapes(channels, **numbers),
        },
        numbers if size is None else {**numbers, "size": size},
        ("features", "image"),
        fixed=fixed if size is None else {},
        result="image",
    )


SMALL = [
    query("query-coords", 2, 2, 3, queries=5),
]
AWKWARD = [
    query("query-grid", 2, 3, 5, size=(8, 9)),
    query("query-grid-down", 1, 7, 4, size=(3, 4)),
    query("query-two-attentions", 1, 4, 3, size=(9, 8), attentions=2, channels=6),
    query("query-1x1", 1, 1, 1, size=(1, 1)),
    query("query-one", 1, 3, 4, queries=1),
    query("query-no-batch", 0, 3, 4, size=(5, 6)),
]
FLOPS = {  # of the small cases, by hand
    "query-coords": 2 * 10 * (20 * 4 + 16 + 6 * 4 + 4 * 3 + 4 * 12 + 2 * 16 + 2 * 4 * 2),
}
FORMULAS = [
    Formula(
        # HIIF-L: (260x64 + 64x64) + (66x64 + 64x64) + (66x64 + 64x3) of the MLPs, then qkv 64x192,
        # k^T v and q M 64x16 each, two projections 64x64.
        flops(1280 * 720, DecoderShape(64, 3, 4, 1)),
        2 * 1280 * 720 * (20736 + 8320 + 4416 + 12288 + 2048 + 8192),
        "HIIF-L at 1280x720",
    ),
]
EXPORTS = [
    Export(
        "query-coords",
        {
            "features": {0: B, 1: H, 2: W},
            "image": {0: B, 1: H, 2: W},
            "coords": {0: B, 1: Q},
            "cell": {0: B},
        },
        {B: 2, H: 5, W: 6, Q: 9},
        {B: 3, H: 8, W: 7, Q: 21},
    ),
    Export(
        "query-grid",
        {"features": {0: B, 1: H, 2: W}, "image": {0: B, 1: H, 2: W}},
        {B: 2, H: 5, W: 6},
        {B: 3, H: 8, W: 7},
    ),
]
REFUSALS = refusals(
    SMALL[0],
    ({"image": grow(3)}, ValueError, "image must have the shape (B, H, W, 3) = (2, "),
    ({"heads": 3}, ValueError, "heads must divide the channels of features, 4, got"),
    ({"attentions": 2}, ValueError, "attentions must be from 0 to levels - 1, 1, got"),
    ({"levels": 3}, ValueError, "weights must hold 'mlps.2.norm.weight': see"),
    ({"attentions": 0}, ValueError, "weights holds 'attentions.0.qkv.weight', which"),
    (
        {"mlps.0.norm.weight": grow(0)},
        ValueError,
        "weights['mlps.0.norm.weight'] must have the shape",
    ),
    ({"size": (4, 4)}, ValueError, "size and coords exclude each other: give a grid"),
    ({"coords": None}, ValueError, "size, or coords with cell, must be given."),
    ({"cell": None}, ValueError, "size, or coords with cell, must be given."),
    ({"cell": grow(1)}, ValueError, "cell must have the shape (B, 2) = (2, 2), got"),
    ({"coords": to(torch.float16)}, TypeError, "coords must be float32 or float64, g"),
    (
        {"coords": lambda x: x.requires_grad_()},
        ValueError,
        "coords must not require a gradient: positions have none; detach it.",
    ),
    (
        {"region": Region((0, 1), (0, 1), (0, 0), (2, 3))},
        ValueError,
        "region must come with size: it is a part of a grid.",
    ),
    ({"moments": []}, ValueError, "moments must hold one tensor per attention, 1, got"),
    (
        {"moments": [torch.zeros(2, 2, 2, 3)]},
        ValueError,
        "moments[0] must have the shape (B, heads, head_dim, head_dim) = (2, 2, 2, 2), got",
    ),
)
