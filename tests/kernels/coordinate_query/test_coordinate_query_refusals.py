"""Refusals of the coordinate query for regions of a grid."""

from __future__ import annotations

import re

import pytest
import torch

from c2d_kernels import Region, coordinate_query, coordinate_query_moments
from c2d_kernels import coordinate_query_weight_shapes as weight_shapes

GRID = {"levels": 2, "heads": 2, "size": (12, 10)}
CROP = Region((0, 6), (0, 5), (0, 0), (6, 5))
GRID_REFUSALS = [  # changes to a valid region query, the sentence
    ({"size": (12,)}, "size must be (H_out, W_out), got (12,)."),
    ({"size": (12, 0)}, "size must be at least 1, got 0."),
    ({"region": CROP._replace(rows=(3, 3))}, "region.rows must be a non-empty part of 0 to 12"),
    ({"region": CROP._replace(columns=(4, 11))}, "region.columns must be a non-empty part of 0 to"),
    ({"region": CROP._replace(lr_origin=(3, 0))}, "region.lr_origin must place the 4 rows of feat"),
    (
        {"region": CROP._replace(rows=(0, 8))},
        "region.rows (0, 8) reads LR rows 0 to 4, but features",
    ),
    ({"region": CROP._replace(lr_origin=(1, 0))}, "region.rows (0, 6) reads LR rows 0 to 3, but f"),
]


@pytest.mark.parametrize(("change", "sentence"), GRID_REFUSALS, ids=lambda value: str(value)[:50])
def test_grid_refusal(change: dict, sentence: str) -> None:
    features, image = torch.zeros(1, 4, 5, 4), torch.zeros(1, 4, 5, 3)
    weights = {n: torch.zeros(s) for n, s in weight_shapes(4, levels=2, heads=2).items()}
    arguments = {**GRID, "region": CROP}
    coordinate_query(features, image, weights, **arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        coordinate_query(features, image, weights, **{**arguments, **change})
    with pytest.raises(ValueError, match="moments must leave an attention to accumulate: there"):
        coordinate_query_moments(features, weights, **arguments, moments=[torch.zeros(1, 2, 2, 2)])
