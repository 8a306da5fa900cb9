"""Spatial correlation's reference against the float64 oracle."""

from __future__ import annotations

import pytest

import c2d_kernels
from tests import oracle
from tests.kernels.oracle_checks import assert_equal, random

pytestmark = pytest.mark.usefixtures("reference_backend")

SPATIAL_CASES = {  # (B, H, W, C, window, base_window, heads)
    "one-pixel": (1, 1, 1, 4, 1, 8, 2),
    "smaller-than-base": (2, 8, 12, 30, 4, 8, 6),
    "equal-to-base": (2, 8, 16, 30, 8, 8, 6),
    "ratio-2": (2, 16, 32, 30, 16, 8, 6),
    "ratio-4": (1, 32, 32, 20, 32, 8, 2),
    "ratio-8": (1, 64, 64, 10, 64, 8, 1),
    "one-cell": (1, 6, 12, 4, 6, 1, 2),
    "wide": (1, 8, 32, 12, (8, 16), 8, 2),
    "tall": (2, 24, 12, 12, (12, 2), 4, 3),
}


@pytest.mark.parametrize("case", SPATIAL_CASES.values(), ids=SPATIAL_CASES.keys())
def test_spatial_correlation(case):
    batch, height, width, channels, window, base, heads = case
    window_height, window_width = (window, window) if isinstance(window, int) else window
    cell = (window_height // min(window_height, base)) * (window_width // min(window_width, base))
    q, v = (random(batch, height, width, channels, seed=s) for s in (0, 1))
    weight, weight_bias = random(1, cell, seed=2), random(1, seed=3)
    table = random((2 * window_height - 1) * (2 * window_width - 1), heads, seed=4)
    arguments = (q, v, weight, weight_bias, table)
    options = {"window_size": window, "base_window": base, "num_heads": heads}
    actual = c2d_kernels.spatial_correlation(*arguments, **options)
    assert_equal(actual, oracle.spatial_correlation(*arguments, **options))
