"""The references of window attention and the permuted one against the float64 oracle."""

from __future__ import annotations

import pytest

import c2d_kernels
from tests import oracle
from tests.kernels.oracle_checks import assert_equal, random

pytestmark = pytest.mark.usefixtures("reference_backend")

WINDOW_CASES = {  # (B, H, W, C, window, heads, shift, scale)
    "one-pixel": (1, 1, 1, 4, 1, 2, 0, None),
    "one-window": (2, 8, 8, 20, 8, 2, 0, None),
    "one-window-shifted": (1, 8, 8, 20, 8, 2, 4, None),
    "one-row-shifted": (1, 4, 20, 12, 4, 3, 2, None),
    "swinir-l": (2, 16, 24, 60, 8, 6, 0, None),
    "swinir-l-shifted": (2, 16, 24, 60, 8, 6, 4, None),
    "tall-shifted": (1, 40, 8, 20, 8, 2, 4, None),
    "uneven-shift": (1, 12, 18, 10, 6, 2, 1, None),
    "odd-window": (1, 14, 21, 24, 7, 2, 3, None),
    "wide-window": (1, 16, 32, 24, 16, 2, 8, None),
    "own-scale": (1, 8, 12, 10, 4, 1, 2, 0.7),
}


@pytest.mark.parametrize("case", WINDOW_CASES.values(), ids=WINDOW_CASES.keys())
def test_window_attention(case):
    batch, height, width, channels, window, heads, shift, scale = case
    qkv = random(batch, height, width, 3 * channels)
    table = random((2 * window - 1) ** 2, heads, seed=1)
    options = {"window_size": window, "num_heads": heads, "shift": shift, "scale": scale}
    actual = c2d_kernels.window_attention(qkv, table, **options)
    assert_equal(actual, oracle.window_attention(qkv, table, **options))


def test_window_attention_adds_the_mask():
    """-100 is added, not infinity: scores that large still reach across regions."""
    qkv = 20 * random(1, 8, 8, 3 * 4)
    table = random(7**2, 1, seed=1)
    options = {"window_size": 4, "num_heads": 1, "shift": 2}
    actual = c2d_kernels.window_attention(qkv, table, **options)
    assert_equal(actual, oracle.window_attention(qkv, table, **options))


PERMUTED_CASES = {  # (B, H, W, C, window, heads, shift, scale)
    "one-key": (1, 2, 2, 4, 2, 1, 0, None),
    "one-window": (2, 8, 8, 8, 8, 2, 0, None),
    "one-window-shifted": (1, 8, 8, 8, 8, 2, 4, None),
    "heads-straddle-cells": (2, 16, 8, 60, 8, 6, 4, None),
    "srformer-l": (1, 16, 32, 60, 16, 6, 8, None),
    "unshifted": (1, 8, 20, 12, 4, 3, 0, None),
    "uneven-shift": (1, 12, 24, 20, 12, 2, 2, None),
    "own-scale": (1, 12, 8, 8, 4, 1, 2, 0.7),
}


@pytest.mark.parametrize("case", PERMUTED_CASES.values(), ids=PERMUTED_CASES.keys())
def test_permuted_window_attention(case):
    batch, height, width, channels, window, heads, shift, scale = case
    q = random(batch, height, width, channels)
    kv = random(batch, height, width, channels // 2, seed=1)
    table = random((window - 1) ** 2, heads, seed=2)
    options = {"window_size": window, "num_heads": heads, "shift": shift, "scale": scale}
    actual = c2d_kernels.permuted_window_attention(q, kv, table, **options)
    assert_equal(actual, oracle.permuted_window_attention(q, kv, table, **options))
