"""Fixtures of the tests of the networks."""

import sys
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PUBLISHED_LAYERS = Path(__file__).parents[1] / "accelerate"
sys.path[:0] = [str(GOLDEN), str(PUBLISHED_LAYERS)]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Fresh networks are the same in every run."""
    torch.manual_seed(11)
