"""The selective scan's reference against the float64 oracle."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import c2d_kernels
from tests import oracle
from tests.kernels.oracle_checks import assert_equal, random

pytestmark = pytest.mark.usefixtures("reference_backend")

SCAN_SHAPES = {  # (B, D, L, N)
    "one-step": (1, 3, 1, 4),
    "one-of-each": (1, 1, 1, 1),
    "mamba-wide": (2, 48, 151, 16),
    "odd-channels": (2, 47, 129, 8),
    "long": (1, 8, 1134, 8),
    "many-states": (1, 2, 33, 256),
}


def projection(kind: str, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """B or C: constant (D, N), one for all channels (B, N, L) or of `kind` groups (B, G, N, L)."""
    batch, channels, length, states = shape
    if kind == "constant":
        return random(channels, states, seed=seed)
    if kind == "shared":
        return random(batch, states, length, seed=seed)
    return random(batch, int(kind), states, length, seed=seed)


def check_scan(shape: tuple[int, int, int, int], b: str, c: str, **options: Tensor | bool) -> None:
    batch, channels, length, states = shape
    arguments = [
        random(batch, channels, length, seed=1),
        random(batch, channels, length, seed=2).abs() * 0.3,
        -random(channels, states, seed=3).exp(),
        projection(b, shape, 4),
        projection(c, shape, 5),
    ]
    expected, expected_state = oracle.selective_scan(*arguments, **options)
    actual, state = c2d_kernels.selective_scan(*arguments, **options, return_last_state=True)
    assert_equal(actual, expected)
    assert_equal(state, expected_state)
    assert torch.equal(c2d_kernels.selective_scan(*arguments, **options), actual)


@pytest.mark.parametrize("shape", SCAN_SHAPES.values(), ids=SCAN_SHAPES.keys())
def test_selective_scan_shapes(shape):
    batch, channels, length, _ = shape
    check_scan(
        shape,
        "shared",
        "shared",
        D=random(channels, seed=6),
        z=random(batch, channels, length, seed=7),
        delta_bias=random(channels, seed=8),
        delta_softplus=True,
    )


@pytest.mark.parametrize(
    ("b", "c"),
    [*itertools.product(["constant", "shared", "3"], repeat=2), ("1", "6"), ("2", "3")],
    ids=lambda kind: f"{kind}-groups" if kind.isdigit() else kind,
)
def test_selective_scan_projections(b, c):
    check_scan((2, 6, 17, 5), b, c)


@pytest.mark.parametrize(
    "used",
    [u for n in range(5) for u in itertools.combinations(("D", "z", "bias", "softplus"), n)],
    ids=lambda used: "+".join(used) or "none",
)
def test_selective_scan_options(used):
    options = {
        "D": ("D", random(6, seed=6)),
        "z": ("z", random(2, 6, 17, seed=7)),
        "bias": ("delta_bias", random(6, seed=8).abs()),
        "softplus": ("delta_softplus", True),
    }
    check_scan((2, 6, 17, 5), "2", "shared", **dict(options[name] for name in used))


@pytest.mark.parametrize(
    "bias", [0.0, 19.5, 20.0, 1e4, -800.0], ids=["small", "below-20", "at-20", "huge", "vanishing"]
)
def test_selective_scan_softplus_range(bias):
    """Around softplus's threshold, where the decay underflows to 0, and where delta does."""
    u = random(1, 4, 29, seed=1)
    delta, b, c = (random(1, 4, 29, seed=s) for s in (2, 4, 5))
    arguments = (u, delta, -random(4, 4, seed=3).exp(), b, c, torch.ones(4).double())
    options = {"delta_bias": torch.full((4,), bias).double(), "delta_softplus": True}
    expected, expected_state = oracle.selective_scan(*arguments, **options)
    actual, state = c2d_kernels.selective_scan(*arguments, **options, return_last_state=True)
    assert_equal(actual, expected)
    assert torch.isfinite(state).all()
    if bias == -800:  # e^-800 is 0 in float64: nothing enters the state, D u alone comes out
        assert torch.equal(actual, u) and not state.any() and not expected_state.any()
    else:
        assert_equal(state, expected_state)


def test_selective_scan_of_strided_inputs():
    """A transposed (B, L, D) map, and B and C as slices of one projection."""
    u, delta = random(2, 31, 10, seed=1).mT, random(2, 31, 10, seed=2).abs().mT
    parts = random(2, 31, 3 + 4 + 4, seed=3)
    b, c = parts[..., 3:7].mT, parts[..., 7:].mT
    arguments = (u, delta, -random(10, 4, seed=4).exp(), b, c)
    assert_equal(c2d_kernels.selective_scan(*arguments), oracle.selective_scan(*arguments)[0])
