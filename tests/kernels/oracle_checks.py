"""Comparing a reference with the float64 oracle, to 1e-12 of the largest output."""

from __future__ import annotations

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == expected.shape
    largest = expected.abs().max()
    assert largest > 0, "a case whose output is zero everywhere shows nothing"
    assert ((actual - expected).abs().max() / largest).item() < 1e-12
