"""The window layer: when it is taken in one piece, and its kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native
from c2d_kernels.ops.window_layer.reference import NAMES
from tests.kernels.comparison import relative_error

needs_native = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

# name: (B, H, W), channels, hidden, window, heads, shift
SHAPES = {
    "swinir-l": ((1, 24, 16), 60, 120, 8, 6, 4),
    "swinir": ((1, 16, 8), 180, 360, 8, 6, 0),
    "w16-d12": ((1, 32, 16), 48, 96, 16, 4, 8),
    "w32-d5": ((1, 32, 64), 20, 40, 32, 4, 16),
    "w4-d16": ((2, 8, 12), 32, 64, 4, 2, 1),
    "w3-d5": ((2, 9, 6), 15, 7, 3, 3, 2),
    "w2-d1": ((1, 4, 2), 2, 100, 2, 2, 1),
}


def inputs(shape: tuple, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor], dict]:
    size, channels, hidden, window, heads, shift = shape
    generator = torch.Generator().manual_seed(5)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    widths = {"qkv": (channels, 3 * channels), "proj": (channels, channels)}
    widths |= {"fc1": (channels, hidden), "fc2": (hidden, channels)}
    weights = {}
    for name in NAMES:
        module, kind = name.split(".")
        if module in widths:
            fan_in, fan_out = widths[module]
            weights[name] = (
                normal(fan_out, fan_in) / fan_in**0.5 if kind == "weight" else normal(fan_out)
            )
        else:
            weights[name] = 0.3 * normal(channels) + (1.0 if kind == "weight" else 0.0)
    wide = torch.promote_types(dtype, torch.float32)
    table = normal((2 * window - 1) ** 2, heads).to(wide)
    options = {"window_size": window, "num_heads": heads, "shift": shift}
    x = 3 * normal(*size, channels) + 5  # a mean that a careless variance would drown in
    return x.to(dtype), table, {name: w.to(wide) for name, w in weights.items()}, options


def run(
    x: Tensor, table: Tensor, weights: dict[str, Tensor], options: dict, backend: str
) -> Tensor:
    with c2d_kernels.backend(backend):
        return c2d_kernels.window_layer(x, table, weights, **options)


def double(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.double() for name, w in weights.items()}


every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


@needs_native
@every_shape
def test_float64_equals_reference(shape) -> None:
    arguments = inputs(shape, torch.float64)
    assert relative_error(run(*arguments, "cpu"), run(*arguments, "reference")) <= 1e-12


@needs_native
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_the_formula(shape, dtype) -> None:
    x, table, weights, options = inputs(shape, dtype)
    exact = run(x.double(), table.double(), double(weights), options, "reference")
    naive = relative_error(run(x, table, weights, options, "reference"), exact)
    found = relative_error(run(x, table, weights, options, "cpu"), exact)
    assert found <= 2 * naive + torch.finfo(dtype).eps


@needs_native
def test_maps_of_any_strides() -> None:
    x, table, weights, options = inputs(SHAPES["w4-d16"], torch.float64)
    wide = torch.full((2, 20, 30, 40), torch.nan, dtype=torch.float64)
    wide[:, 5:13, 7:19, 3:35] = x
    views = [
        wide[:, 5:13, 7:19, 3:35],
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    ]
    for view in views:
        assert not view.is_contiguous()
        assert torch.equal(
            run(view, table, weights, options, "cpu"), run(x, table, weights, options, "cpu")
        )


@needs_native
def test_bitwise_the_same_for_any_threads() -> None:
    arguments = inputs(((2, 48, 40), 60, 120, 8, 6, 4), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(*arguments, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_masked_keys_weigh_nothing(dtype: torch.dtype) -> None:
    """With v in one region of a shifted window only, attention adds nothing in the others.

    Not the mask's exp(-100) either, which is a denormal number: processors are slow with those.
    """
    x, table, weights, options = inputs(SHAPES["swinir-l"], dtype)
    weights = {name: torch.zeros_like(w) for name, w in weights.items()}
    weights["norm1.weight"][:] = 1
    weights["qkv.weight"][-1, -1] = 1  # v of the last channel is the norm's of x
    weights["proj.weight"][-1, -1] = 2.0**100  # a weight of exp(-100) would show
    options["shift"] = options["window_size"] // 2
    x, table = torch.zeros_like(x), torch.zeros_like(table)
    corner = slice(0, options["shift"])
    x[:, corner, corner, -1] = 1
    out = run(x, table, weights, options, "cpu")[..., -1]
    assert (out[:, corner, corner] > 2.0**90).all()
    out[:, corner, corner] = 0
    assert (out == 0).all()


@needs_native
def test_not_a_number_stays_in_its_window() -> None:
    x, table, weights, options = inputs(SHAPES["w4-d16"], torch.float32)
    x[0, 2, 3, 5] = torch.nan
    out = run(x, table, weights, {**options, "shift": 0}, "cpu")
    assert torch.isnan(out[0, :4, :4]).all()
    assert torch.isfinite(out[0, 4:]).all() and torch.isfinite(out[1]).all()


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    if isa not in torch.ops.c2d_native.build_info().split("(in use")[0].split():
        pytest.skip(f"{isa} is not compiled in")
    tests = ["test_float64_equals_reference", "test_as_exact_as_the_formula"]
    tests = [f"{__file__}::{name}" for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", "not w32 and not float16", *tests],
        env={**os.environ, "C2D_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@needs_native
def test_taken_without_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, table, weights, options = inputs(SHAPES["w4-d16"], torch.float32)
    taken = []
    whole = torch.ops.c2d.window_layer.default
    monkeypatch.setattr(
        torch.ops.c2d.window_layer, "default", lambda *args: taken.append(1) or whole(*args)
    )
    c2d_kernels.window_layer(x, table, weights, **options)
    assert len(taken) == 1
    weights["fc2.bias"].requires_grad_()
    out = c2d_kernels.window_layer(x, table, weights, **options)
    assert len(taken) == 1 and out.requires_grad
    with torch.no_grad():
        c2d_kernels.window_layer(x, table, weights, **options)
    assert len(taken) == 2


def test_gradients_of_the_composed_layer() -> None:
    x, table, weights, options = inputs(SHAPES["w3-d5"], torch.float64)
    leaves = [t.requires_grad_() for t in (x, table, *weights.values())]
    found, wanted = (
        torch.autograd.grad(run(x, table, weights, options, name).square().sum(), leaves)
        for name in ("auto", "reference")
    )
    for got, want in zip(found, wanted, strict=True):
        assert relative_error(got, want) <= 1e-12


def test_refusals() -> None:
    x, table, weights, options = inputs(SHAPES["w4-d16"], torch.float32)
    refused = [
        ({**weights, "fc3.weight": table}, "weights holds 'fc3.weight'"),
        ({n: w for n, w in weights.items() if n != "qkv.bias"}, "weights must hold 'qkv.bias'"),
        ({**weights, "fc2.weight": weights["fc1.weight"]}, r"weights\['fc2.weight'\] must have"),
        ({**weights, "fc1.weight": table[:, 0]}, r"weights\['fc1.weight'\] must have the shape"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            c2d_kernels.window_layer(x, table, wrong, **options)
    with pytest.raises(ValueError, match="x"):
        c2d_kernels.window_layer(x[:, :7], table, weights, **options)
