"""Channel correlation's reference against the float64 oracle."""

from __future__ import annotations

import pytest

import c2d_kernels
from tests import oracle
from tests.kernels.oracle_checks import assert_equal, random

pytestmark = pytest.mark.usefixtures("reference_backend")

CHANNEL_CASES = {  # (B, H, W, C, window)
    "one-pixel": (2, 1, 1, 3, 8),
    "whole-windows": (2, 8, 12, 10, 4),
    "border-windows": (2, 13, 18, 10, 8),
    "one-extra-column": (1, 8, 9, 6, 8),
    "smaller-than-a-window": (1, 5, 7, 30, 64),
    "oblong-window": (1, 11, 23, 6, (4, 10)),
    "windows-of-one": (1, 3, 4, 5, 1),
    "one-channel": (1, 9, 6, 1, (5, 4)),
    "hit-sr-64": (1, 70, 66, 30, 64),
}


@pytest.mark.parametrize("case", CHANNEL_CASES.values(), ids=CHANNEL_CASES.keys())
def test_channel_correlation(case):
    *shape, window = case
    q, v = random(*shape), random(*shape, seed=1)
    actual = c2d_kernels.channel_correlation(q, v, window_size=window)
    assert_equal(actual, oracle.channel_correlation(q, v, window_size=window))


def test_channel_correlation_of_slices():
    q, v = random(1, 9, 14, 20).chunk(2, -1)
    actual = c2d_kernels.channel_correlation(q, v, window_size=8)
    assert_equal(actual, oracle.channel_correlation(q, v, window_size=8))
