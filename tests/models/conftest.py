"""What the tests of the networks share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from c2d_models import create, hiet, hit, layers, mambairv2

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
sys.path.insert(0, str(GOLDEN))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Fresh networks are the same in every run."""
    torch.manual_seed(11)


@pytest.fixture
def gmacs(monkeypatch) -> Callable[[str, int], float]:
    """GMACs of a network to 1280x720 output, by the operators' registered definitions."""
    ops = torch.ops.c2d

    def correlation(q, v, *, window_size):
        return ops.channel_correlation(q, v, window_size, window_size)

    def spatial(q, v, weight, bias, table, *, window_size, base_window, num_heads):
        base = min(window_size, base_window)
        window = (window_size, window_size, base, base)
        return ops.spatial_correlation(q, v, weight, bias, table, *window, num_heads)

    def permuted(q, kv, table, *, window_size, num_heads, shift):
        return ops.permuted_window_attention(q, kv, table, window_size, num_heads, shift, 1.0)

    def attention(qkv, table, *, window_size, num_heads, shift):
        return ops.window_attention(qkv, table, window_size, num_heads, shift, 1.0)

    def scan(u, delta, A, B, C, D, *, delta_bias, delta_softplus):
        return ops.selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus)[0]

    monkeypatch.setattr(hiet, "channel_correlation", correlation)
    monkeypatch.setattr(hit, "channel_correlation", correlation)
    monkeypatch.setattr(hit, "spatial_correlation", spatial)
    monkeypatch.setattr(layers, "window_attention", attention)
    monkeypatch.setattr(layers, "permuted_window_attention", permuted)
    monkeypatch.setattr(mambairv2, "selective_scan", scan)

    def count(name: str, scale: int, **config) -> float:
        net = create(name, scale, config=config).to("meta").eval()
        image = torch.empty(1, 3, 720 // scale, -(-1280 // scale), device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(image)
        return counter.get_total_flops() / 2e9

    return count
