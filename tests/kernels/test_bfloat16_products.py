"""Kernels that multiply bfloat16 (AVX-512 BF16), against float64 and against the float32 way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native
from tests.kernels.bfloat16_checks import needs_products
from tests.kernels.cases import AWKWARD, SMALL
from tests.kernels.comparison import relative_error
from tests.kernels.rows import Case

needs_native = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))


@pytest.mark.parametrize("inputs", [6, 7])
def test_a_bias_keeps_sixteen_bits(inputs: int) -> None:
    matrix = torch.randn(50, inputs + 1, generator=torch.Generator().manual_seed(2))
    columns = native.bfloat16_columns(matrix)
    assert columns.shape == (50, 8 if inputs == 6 else 10) and columns.is_contiguous()
    assert torch.equal(columns[:, :inputs], matrix[:, :inputs].bfloat16())
    bias, kept = matrix[:, -1], columns[:, inputs:].float().sum(1)
    assert ((kept - bias).abs() <= bias.abs() * 2**-16).all()


LAYERS = [case for case in AWKWARD if case.bfloat16_products]
every_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)


def outputs(case: Case, tensors: dict[str, Tensor], backend: str = "cpu") -> Tensor:
    with c2d_kernels.backend(backend):
        return case.call(tensors)


def rounded(case: Case) -> dict[str, Tensor]:
    return {name: x.bfloat16() for name, x in case.tensors().items()}


@needs_products
@every_layer
def test_layers_both_ways(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = rounded(case)
    got = outputs(case, tensors)
    monkeypatch.setattr(native, "bfloat16", False)
    by_float32 = outputs(case, tensors)
    assert got.dtype == torch.bfloat16 and got.shape == by_float32.shape
    if got.numel() == 0:
        return
    exact = outputs(case, {name: x.double() for name, x in tensors.items()}, "reference")
    monkeypatch.setattr(torch, "promote_types", lambda narrow, wide: narrow)
    naive = relative_error(outputs(case, tensors, "reference"), exact)
    allowed = 2 * naive + torch.finfo(torch.bfloat16).eps
    assert relative_error(got, exact) <= allowed
    assert relative_error(by_float32, exact) <= allowed


@needs_products
@every_layer
def test_layers_on_maps_of_any_strides(case: Case) -> None:
    tensors = rounded(case)
    views = dict(tensors)
    for name in case.features:
        x = tensors[name]
        wide = torch.full((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 3), torch.nan).bfloat16()
        wide[:, :, 2:-1, 1:-2] = x
        views[name] = wide[:, :, 2:-1, 1:-2]
    assert torch.equal(outputs(case, views), outputs(case, tensors))


@needs_products
@pytest.mark.parametrize(
    "case", [case for case in SMALL if case.bfloat16_products], ids=lambda case: case.name
)
def test_bfloat16_reaches_the_kernel_as_it_is(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map and what is multiplied; of other types only float32 does."""
    packet, seen = getattr(torch.ops.c2d_native, case.operator), []
    kernel = packet.default
    monkeypatch.setattr(packet, "default", lambda *args: seen.append(args) or kernel(*args))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        outputs(case, case.tensors(dtype))
    lists = [[arg if isinstance(arg, list) else [arg] for arg in args] for args in seen]
    types = [[a.dtype for one in all_ for a in one if isinstance(a, Tensor)] for all_ in lists]
    assert types[0][0] == torch.bfloat16 and types[0].count(torch.bfloat16) >= 3
    assert {*types[1], *types[2]} == {torch.float32}
    with pytest.raises(RuntimeError, match=r"must (be a dense|have the type)"):
        kernel(seen[0][0], *seen[1][1:])


SAY = "from c2d_kernels import native; print(native.bfloat16, native.build_info())"


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx512bf16"])
def test_which_way_is_taken_can_be_told(isa: str) -> None:
    if isa == "avx512bf16" and not native.bfloat16:
        pytest.skip(needs_products.kwargs["reason"])
    done = subprocess.run(
        [sys.executable, "-c", SAY],
        env={**os.environ, "C2D_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    said, info = done.stdout.split(maxsplit=1)
    assert said == str(isa == "avx512bf16")
    assert (f"(in use: {isa})" in info) or not native.bfloat16
    assert f"native     {native.build_info()}" in str(c2d_kernels.info())
