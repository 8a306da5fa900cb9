"""Gradients of layers in one piece by their native kernels, where test_operators.py stops."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch

import c2d_kernels
from c2d_kernels import native
from c2d_kernels.dispatch import kernels
from tests.kernels.cases import AWKWARD
from tests.kernels.comparison import gradients, relative_error
from tests.kernels.rows import Case

pytestmark = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

DIFFERENTIATED = [
    case
    for case in AWKWARD
    if case.composed
    and case.shapes["x"][0]  # not without batch
    and any(kernel.backend == "cpu" and kernel.backward for kernel in kernels(case.operator))
]
every = pytest.mark.parametrize("case", DIFFERENTIATED, ids=lambda case: case.name)


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
                errors_found.append(relative_error(found[name], exact[name]))
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
