"""Gradients of layers in one piece by their native kernels, where test_operators.py stops."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native
from tests.kernels.cases import AWKWARD, Case, Tensors

pytestmark = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

CASES = {
    case.name: case
    for case in AWKWARD
    if case.operator in ("conv_ffn", "res_post_norm") and case.shapes["x"][0]  # not without batch
}
every = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def gradients(case: Case, tensors: Tensors, backend: str, names: tuple = ()) -> dict[str, Tensor]:
    """Of a fixed weighted sum of the result, for the tensors of these names: all, if none."""
    names = names or tuple(tensors)
    tensors = {name: x.detach().requires_grad_(name in names) for name, x in tensors.items()}
    with c2d_kernels.backend(backend):
        out = case.call(tensors)
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        found = torch.autograd.grad((out * weight).sum(), [tensors[name] for name in names])
    return dict(zip(names, found, strict=True))


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).abs().max() / want.abs().max()).item()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_the_formula(case: Case, dtype: torch.dtype) -> None:
    """By the medians of five draws: in a norm over three channels one is a lottery."""
    errors: dict[str, tuple[list[float], list[float]]] = {}
    for seed in range(5):
        tensors = case.tensors(dtype, seed)
        exact = gradients(case, {n: x.double() for n, x in tensors.items()}, "reference")
        both = [gradients(case, tensors, backend) for backend in ("cpu", "reference")]
        for name, x in tensors.items():
            assert both[0][name].dtype == x.dtype
            for found, errors_found in zip(both, errors.setdefault(name, ([], [])), strict=True):
                errors_found.append(error(found[name], exact[name]))
    for name, (ours, naive) in errors.items():
        assert median(ours) <= 2 * median(naive) + torch.finfo(dtype).eps, name


@every
def test_bitwise_the_same_for_any_threads(case: Case) -> None:
    case = replace(
        case,
        shapes={
            n: (5, *shape[1:]) if n in case.features else shape for n, shape in case.shapes.items()
        },
    )
    tensors, before = case.tensors(torch.float32), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(case, tensors, "cpu"))
    finally:
        torch.set_num_threads(before)
    for name, first in results[0].items():
        assert all(torch.equal(first, other[name]) for other in results[1:]), name


@every
def test_one_gradient_alone(case: Case) -> None:
    tensors = case.tensors(torch.float32)
    together = gradients(case, tensors, "cpu")
    for name in tensors:
        alone = gradients(case, tensors, "cpu", (name,))
        assert torch.equal(alone[name], together[name]), name


@every
def test_expanded_gradient(case: Case) -> None:
    """That of a plain sum: one number with strides of 0."""
    found = {}
    for backend in ("cpu", "reference"):
        tensors = {name: x.requires_grad_() for name, x in case.tensors().items()}
        with c2d_kernels.backend(backend):
            case.call(tensors).sum().backward()
        found[backend] = {name: x.grad for name, x in tensors.items()}
    for name, got in found["cpu"].items():
        # Beside the other gradients: that of a weight before a norm is zero but for rounding.
        scale = max(x.abs().max() for x in found["reference"].values())
        assert (got - found["reference"][name]).abs().max() <= 1e-12 * scale, name


@pytest.mark.parametrize("norm_first", [False, True], ids=["norm-last", "norm-first"])
@pytest.mark.parametrize(
    "size",
    [(40, 66, 3), (1, 130, 250), (1, 3, 4), (2, 1, 7), (1, 9, 121)],
    ids=["many-tiles", "tiles-both-ways", "small", "one-row", "wide"],
)
def test_tiles_of_a_map_do_not_show(size: tuple[int, int, int], norm_first: bool) -> None:
    case = CASES["conv-ffn-norm-last"]
    case = replace(
        case, shapes={**case.shapes, "x": (*size, 18)}, options={"norm_first": norm_first}
    )
    found, wanted = (gradients(case, case.tensors(), name) for name in ("cpu", "reference"))
    for name, want in wanted.items():
        assert error(found[name], want) <= 1e-12, name


def test_far_tails_of_gelu() -> None:
    """Where its density is 1e-34, the slope times a small gradient is 0, not a denormal number.

    Those made a training step four times as slow.
    """
    tensors = CASES["conv-ffn-norm-last"].tensors(torch.float32)
    for name in ("fc1", "dwconv"):
        tensors[f"{name}.weight"].zero_()
        tensors[f"{name}.bias"].fill_(-12.5)
    tensors["norm.weight"].fill_(1e-8)
    found = gradients(CASES["conv-ffn-norm-last"], tensors, "cpu")
    for name in ("fc1.bias", "dwconv.bias"):
        assert (found[name] == 0).all(), name
    assert torch.isfinite(found["x"]).all()
