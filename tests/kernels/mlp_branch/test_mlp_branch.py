"""The MLP with its norm and skip: against torch's modules, of views, and far tails of GELU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import c2d_kernels
from tests.kernels.cases import CASES
from tests.kernels.comparison import gradients, relative_error


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_is_what_torchs_modules_do(backend: str) -> None:
    """Outputs and gradients, of a map whose tokens fill several groups."""
    torch.manual_seed(0)
    norm, fc1, fc2 = nn.LayerNorm(20), nn.Linear(20, 44), nn.Linear(44, 20)
    modules = nn.ModuleDict({"norm": norm, "fc1": fc1, "fc2": fc2}).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 41, 33, 20, dtype=torch.float64, requires_grad=True)
    along = torch.randn_like(x)
    leaves = dict(modules.named_parameters())
    expected = x + fc2(nn.functional.gelu(fc1(norm(x))))
    with c2d_kernels.backend(backend):
        found = c2d_kernels.mlp_branch(x, leaves)
    torch.testing.assert_close(found, expected)
    wanted, got = (
        torch.autograd.grad((out * along).sum(), [x, *leaves.values()]) for out in (expected, found)
    )
    for name, want, have in zip(["x", *leaves], wanted, got, strict=True):
        assert relative_error(have, want) <= 1e-12, name


def test_a_tokens_value_does_not_depend_on_its_place() -> None:
    """Runs of tokens are cut where the map says; each token's arithmetic is the same."""
    case = CASES["mlp-swinir"]
    tensors = case.tensors(torch.float32)
    whole = case.call(tensors)
    part = case.call({**tensors, "x": tensors["x"][:, 2:8, 3:14]})
    assert torch.equal(part, whole[:, 2:8, 3:14])


def test_far_tails_of_gelu() -> None:
    """Where its density is 1e-34, the slope times a small gradient is 0, not a denormal number."""
    case = CASES["mlp-several-groups"]
    tensors = case.tensors(torch.float32)
    tensors["fc1.weight"].zero_()
    tensors["fc1.bias"].fill_(-12.5)
    found = gradients(case, tensors, "cpu" if c2d_kernels.native.missing is None else "auto")
    assert (found["fc1.bias"] == 0).all()
    assert torch.isfinite(found["x"]).all()
