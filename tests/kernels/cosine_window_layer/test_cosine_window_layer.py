"""Swin V2's layer against torch's modules around the attention of cosines."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import c2d_kernels
from tests.kernels.comparison import relative_error


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_is_what_its_parts_do(backend: str, shift: int) -> None:
    """A map with other strides, scales and lengths at their limits."""
    torch.manual_seed(0)
    modules = nn.ModuleDict(
        {
            "qkv": nn.Linear(12, 36),
            "proj": nn.Linear(12, 12),
            "norm1": nn.LayerNorm(12),
            "fc1": nn.Linear(12, 20),
            "fc2": nn.Linear(20, 12),
            "norm2": nn.LayerNorm(12),
        }
    ).double()
    for norm in (modules["norm1"], modules["norm2"]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    nn.init.zeros_(modules["qkv"].bias)
    x = torch.randn(2, 12, 8, 12, dtype=torch.float64).transpose(1, 2)
    x[0, 3, 4] = 0  # whose q and k have no length
    table = torch.randn(49, 3, dtype=torch.float64)
    scale = torch.tensor([0.0, 1.0, 100.0], dtype=torch.float64)
    options = {"window_size": 4, "num_heads": 3, "shift": shift}
    with torch.no_grad():
        with c2d_kernels.backend("reference"):
            mixed = c2d_kernels.cosine_window_attention(modules["qkv"](x), table, scale, **options)
        y = x + modules["norm1"](modules["proj"](mixed))
        hidden = nn.functional.gelu(modules["fc1"](y))
        expected = y + modules["norm2"](modules["fc2"](hidden))
        with c2d_kernels.backend(backend):
            weights = dict(modules.named_parameters())
            found = c2d_kernels.cosine_window_layer(x, table, scale, weights, **options)
    assert relative_error(found, expected) <= 1e-13
