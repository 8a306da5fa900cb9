"""The gated feed-forward: against torch's modules, and wherever tiles are cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import c2d_kernels
from c2d_kernels import native
from tests.kernels.cases import CASES


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_is_what_torchs_modules_do(backend: str, side: int) -> None:
    torch.manual_seed(0)
    modules = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(20),
            "fc1": nn.Linear(20, 36),
            "gate_norm": nn.LayerNorm(18),
            "dwconv": nn.Conv2d(18, 18, side, padding=side // 2, groups=18),
            "fc2": nn.Linear(18, 20),
        }
    ).double()
    for norm in (modules["norm"], modules["gate_norm"]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 11, 33, 20, dtype=torch.float64)
    hidden = nn.functional.gelu(modules["fc1"](modules["norm"](x)))
    gate = modules["gate_norm"](hidden[..., 18:]).movedim(-1, 1)
    expected = x + modules["fc2"](hidden[..., :18] * modules["dwconv"](gate).movedim(1, -1))
    with c2d_kernels.backend(backend), torch.no_grad():
        found = c2d_kernels.gated_ffn(x, dict(modules.named_parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
@pytest.mark.parametrize("name", ["gated-dat", "gated-mambairv2"])
def test_a_pixels_value_does_not_depend_on_tiles_or_threads(name: str) -> None:
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    generator = torch.Generator().manual_seed(1)
    tensors["x"] = torch.randn(1, 80, 300, tensors["x"].shape[-1], generator=generator)
    before = torch.get_num_threads()
    with c2d_kernels.backend("cpu"):
        whole = case.call(tensors)
        try:
            torch.set_num_threads(3)
            part = case.call({**tensors, "x": tensors["x"][:, 21:70, 77:290]})
        finally:
            torch.set_num_threads(before)
    assert torch.equal(part[:, 2:-2, 2:-2], whole[:, 23:68, 79:288])
