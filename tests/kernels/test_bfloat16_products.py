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
from tests.kernels.cases import AWKWARD, SMALL, Case
from tests.kernels.test_whole_layers import SHAPES, double, error, inputs, run

COMPILED = native.missing is None and "avx512bf16" in native.build_info()
needs_native = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
needs_products = pytest.mark.skipif(
    not native.bfloat16,
    reason=native.missing
    or ("CPU without AVX-512 BF16, or C2D_ISA" if COMPILED else "compiled without AVX-512 BF16"),
)

LAYERS = {
    **SHAPES,
    "w4-c35-d7-h33": ((2, 8, 8), 35, 33, 4, 5, 1),
    "w5-c66-d11": ((1, 10, 15), 66, 67, 5, 6, 2),
    "w7-c64": ((1, 14, 7), 64, 1, 7, 2, 3),
    "w16-c3-d1": ((1, 16, 32), 3, 5, 16, 3, 8),
    "w1-c1": ((1, 3, 2), 1, 1, 1, 1, 0),
    "batch-0": ((0, 8, 8), 60, 120, 8, 6, 4),
}
every_layer = pytest.mark.parametrize("shape", LAYERS.values(), ids=list(LAYERS))


def bfloat16_inputs(shape: tuple) -> tuple[Tensor, Tensor, dict[str, Tensor], dict]:
    """Everything in bfloat16, so that the exact formula sees the same numbers."""
    x, table, weights, options = inputs(shape, torch.bfloat16)
    return x, table.bfloat16(), {name: w.bfloat16() for name, w in weights.items()}, options


@needs_products
@every_layer
def test_as_exact_as_the_formula_in_bfloat16(shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: error <= 2x that of the formula with every operation in bfloat16, plus one ulp."""
    x, table, weights, options = bfloat16_inputs(shape)
    got = run(x, table, weights, options, "cpu")
    monkeypatch.setattr(native, "bfloat16", False)
    by_float32 = run(x, table, weights, options, "cpu")
    assert got.dtype == by_float32.dtype == torch.bfloat16 and got.shape == x.shape
    if x.numel() == 0:
        return
    exact = run(x.double(), table.double(), double(weights), options, "reference")
    monkeypatch.setattr(torch, "promote_types", lambda narrow, wide: narrow)
    naive = error(run(x, table, weights, options, "reference"), exact)
    allowed = 2 * naive + torch.finfo(torch.bfloat16).eps
    assert error(got, exact) <= allowed
    assert error(by_float32, exact) <= allowed


@needs_products
def test_float32_weights_beside_bfloat16_features() -> None:
    """As under autocast; weights that are bfloat16 numbers give the same bits in either type."""
    x, table, weights, options = bfloat16_inputs(SHAPES["swinir-l"])
    wide = {name: w.float() for name, w in weights.items()}
    assert torch.equal(
        run(x, table.float(), wide, options, "cpu"), run(x, table, weights, options, "cpu")
    )


@needs_products
@pytest.mark.parametrize("name", ["w4-d16", "w4-c35-d7-h33"])
def test_maps_of_any_strides(name: str) -> None:
    x, table, weights, options = bfloat16_inputs(LAYERS[name])
    want = run(x, table, weights, options, "cpu")
    batch, height, width, channels = x.shape
    wide = torch.full((batch, height + 5, width + 7, channels + 3), torch.nan).bfloat16()
    wide[:, 3:-2, 4:-3, 1:-2] = x  # rows and tokens begin at odd numbers
    views = [
        wide[:, 3:-2, 4:-3, 1:-2],
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    ]
    for view in views:
        assert not view.is_contiguous()
        assert torch.equal(run(view, table, weights, options, "cpu"), want)


@needs_products
def test_bitwise_the_same_for_any_threads() -> None:
    arguments = bfloat16_inputs(((2, 48, 40), 60, 120, 8, 6, 4))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(*arguments, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_products
@pytest.mark.parametrize("name", ["w4-d16", "w3-d5"])
def test_not_a_number_stays_in_its_window(name: str) -> None:
    x, table, weights, options = bfloat16_inputs(SHAPES[name])
    window = options["window_size"]
    x[0, 2, 1, 5] = torch.nan
    out = run(x, table, weights, {**options, "shift": 0}, "cpu")
    assert torch.isnan(out[0, :window, :window]).all()
    assert torch.isfinite(out[0, window:]).all() and torch.isfinite(out[1]).all()


@needs_products
def test_scores_of_any_size() -> None:
    """Softmax of scores of thousands is a choice of one key, neither 0 / 0 nor a sum of zeros."""
    x, table, weights, options = bfloat16_inputs(SHAPES["w4-d16"])
    weights["qkv.weight"][:64] *= 100
    assert torch.isfinite(run(x, table, weights, options, "cpu")).all()


@pytest.mark.parametrize("inputs", [6, 7])
def test_a_bias_keeps_sixteen_bits(inputs: int) -> None:
    matrix = torch.randn(50, inputs + 1, generator=torch.Generator().manual_seed(2))
    columns = native.bfloat16_columns(matrix)
    assert columns.shape == (50, 8 if inputs == 6 else 10) and columns.is_contiguous()
    assert torch.equal(columns[:, :inputs], matrix[:, :inputs].bfloat16())
    bias, kept = matrix[:, -1], columns[:, inputs:].float().sum(1)
    assert ((kept - bias).abs() <= bias.abs() * 2**-16).all()


PARTS = [
    case for case in AWKWARD if case.operator in ("attention_branch", "res_post_norm", "conv_ffn")
]
every_part = pytest.mark.parametrize("case", PARTS, ids=[case.name for case in PARTS])


def outputs(case: Case, tensors: dict[str, Tensor], backend: str = "cpu") -> Tensor:
    with c2d_kernels.backend(backend):
        return case.call(tensors)


def rounded(case: Case) -> dict[str, Tensor]:
    return {name: x.bfloat16() for name, x in case.tensors().items()}


@needs_products
@every_part
def test_parts_of_layers_both_ways(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = rounded(case)
    got = outputs(case, tensors)
    monkeypatch.setattr(native, "bfloat16", False)
    by_float32 = outputs(case, tensors)
    assert got.dtype == torch.bfloat16 and got.shape == by_float32.shape
    if got.numel() == 0:
        return
    exact = outputs(case, double(tensors), "reference")
    monkeypatch.setattr(torch, "promote_types", lambda narrow, wide: narrow)
    naive = error(outputs(case, tensors, "reference"), exact)
    allowed = 2 * naive + torch.finfo(torch.bfloat16).eps
    assert error(got, exact) <= allowed
    assert error(by_float32, exact) <= allowed


@needs_products
@every_part
def test_parts_of_layers_on_maps_of_any_strides(case: Case) -> None:
    tensors = rounded(case)
    views = dict(tensors)
    for name in case.features:
        x = tensors[name]
        wide = torch.full((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 3), torch.nan).bfloat16()
        wide[:, :, 2:-1, 1:-2] = x
        views[name] = wide[:, :, 2:-1, 1:-2]
    assert torch.equal(outputs(case, views), outputs(case, tensors))


@needs_products
def test_tiles_of_a_map_do_not_show() -> None:
    """What is computed at a pixel is bitwise the same wherever tiles are cut, on any threads."""
    case = next(case for case in PARTS if case.name == "conv-ffn-norm-last")
    tensors, generator = rounded(case), torch.Generator().manual_seed(1)
    tensors["x"] = torch.randn(1, 80, 300, 18, generator=generator).bfloat16()
    whole, before = outputs(case, tensors), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        part = outputs(case, {**tensors, "x": tensors["x"][:, 21:70, 77:290]})
    finally:
        torch.set_num_threads(before)
    assert torch.equal(part[:, 2:-2, 2:-2], whole[:, 23:68, 79:288])


OPERATORS = {
    case.name: case
    for case in SMALL
    if case.operator in ("window_layer", "attention_branch", "res_post_norm", "conv_ffn")
}


@needs_products
@pytest.mark.parametrize("case", OPERATORS.values(), ids=list(OPERATORS))
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
