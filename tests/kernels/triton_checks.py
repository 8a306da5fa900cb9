"""How the tests of Triton kernels judge what they find."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

import c2d_kernels
from tests.kernels.triton_worker import with_gradients

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def on_gpu(test):
    """Mark a test that needs a GPU, and skip it where there is none."""
    test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test)
    return pytest.mark.gpu(test)


def twice(operator: str, tensors: dict[str, Tensor], options: dict) -> list[Tensor]:
    """Outputs and gradients on this GPU, which must come out the same a second time."""
    with c2d_kernels.backend("triton"):
        first, second = (
            with_gradients(getattr(c2d_kernels, operator), tensors, options) for _ in range(2)
        )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return first


def by_reference(operator: str, tensors: dict[str, Tensor], options: dict) -> list[Tensor]:
    with c2d_kernels.backend("reference"):
        return with_gradients(getattr(c2d_kernels, operator), tensors, options)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    scale = exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return ((actual.double() - exact).abs().max() / scale).item()


def assert_by_the_rule(
    operator: str,
    actual: list[Tensor],
    tensors: dict[str, Tensor],
    options: dict,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    pair: tuple[str, str] | None = None,
    gradient_ulps: int = 1,
) -> None:
    """Values and gradients: at most twice the error of the formula in this dtype, plus one ulp.

    pair: two tensors whose gradients are judged as one. A bias of one number needs its weight: by
    chance the formula may hit a single number exactly. A test that gives gradients more ulps says
    why.
    """
    exact = by_reference(operator, {n: x.double() for n, x in tensors.items()}, options)
    kinds = [tensors[next(iter(tensors))], *tensors.values()]
    for got, want, kind in zip(actual, exact, kinds, strict=True):
        assert got.shape == want.shape and got.dtype == kind.dtype

    def joined(found: list[Tensor]) -> list[Tensor]:
        return list(by_name(found).values())

    def by_name(found: list[Tensor]) -> dict[str, Tensor]:
        named = dict(zip(("", *tensors), found, strict=True))
        if pair is not None:
            first, second = pair
            named[first] = torch.cat([named[first].flatten(), named.pop(second).flatten()])
        return named

    if dtype == torch.float64:
        allowed = [1e-12] * len(joined(exact))
    else:
        plain = {name: x.to(dtype) for name, x in tensors.items()}
        with monkeypatch.context() as patch:
            patch.setattr(torch, "promote_types", lambda narrow, wide: narrow)
            naive = by_reference(operator, plain, options)
        eps = torch.finfo(dtype).eps
        errors = list(map(relative_error, joined(naive), joined(exact)))
        ulps = [1] + [gradient_ulps] * (len(errors) - 1)
        allowed = [2 * error + n * eps for error, n in zip(errors, ulps, strict=True)]
    for name, want, bound in zip(by_name(exact), joined(exact), allowed, strict=True):
        error = relative_error(by_name(actual)[name], want)
        what = f"the gradient of {name}" if name else "the result"
        assert error <= bound, f"{what} is off by {error:.2e}, more than {bound:.2e}"
