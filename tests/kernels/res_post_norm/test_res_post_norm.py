"""The res-post-norm layer: without its MLP, of views, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import c2d_kernels
from tests.kernels.cases import CASES
from tests.kernels.comparison import relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_layer_without_its_mlp_is_its_first_half(dtype: torch.dtype) -> None:
    case = CASES["post-norm-hiet"]
    tensors = case.tensors(dtype)
    first = {n: t for n, t in tensors.items() if not n.startswith(("fc1", "fc2", "norm2"))}
    y = case.call(first)
    fc1, fc2, norm2 = (
        (tensors[f"{name}.weight"].to(dtype), tensors[f"{name}.bias"].to(dtype))
        for name in ("fc1", "fc2", "norm2")
    )
    mixed = F.linear(F.gelu(F.linear(y, *fc1)), *fc2)
    whole = y + F.layer_norm(mixed, [60], *norm2)
    assert relative_error(whole, case.call(tensors).double()) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["post-norm-hiet", "post-norm-no-mlp-hiet"])
def test_parts_may_be_views(name: str) -> None:
    """Cut out of a larger map, or transposed, each with strides of its own."""
    case = CASES[name]
    tensors = case.tensors()
    wide = torch.full((1, 12, 20, 40), torch.nan, dtype=torch.float64)
    wide[:, :9, :15, 3:33] = tensors["parts-1"]
    transposed = tensors["parts-2"].permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    views = {**tensors, "parts-1": wide[:, :9, :15, 3:33], "parts-2": transposed}
    views["x"] = tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)
    for backend in ("auto", "reference"):
        with c2d_kernels.backend(backend):
            assert relative_error(case.call(views), case.call(tensors)) <= 1e-14


def test_half_an_mlp_is_refused() -> None:
    case = CASES["post-norm-1x1"]
    for left_out in ("fc1.weight", "fc2.bias", "norm2.weight"):
        tensors = case.tensors()
        del tensors[left_out]
        message = rf"weights must hold '{left_out}', or nothing of fc1, fc2, norm2\."
        with pytest.raises(ValueError, match=message):
            case.call(tensors)
    empty = {"fc1.weight": torch.zeros(0, 17), "fc1.bias": torch.zeros(0)}
    with pytest.raises(ValueError, match="must have at least one row, got none"):
        case.call({**case.tensors(torch.float32), **empty})
    tensors = {n: t for n, t in case.tensors().items() if n.startswith(("x", "parts"))}
    with pytest.raises(ValueError, match=r"weights must hold 'proj.weight'\."):
        c2d_kernels.res_post_norm(tensors["x"], [tensors["parts-1"]], {})
