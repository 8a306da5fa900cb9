"""The window layer where it multiplies bfloat16 (AVX-512 BF16), both ways of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from c2d_kernels import native
from tests.kernels.bfloat16_checks import needs_products
from tests.kernels.comparison import relative_error
from tests.kernels.window_layer.test_window_layer import SHAPES, double, inputs, run

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
    naive = relative_error(run(x, table, weights, options, "reference"), exact)
    allowed = 2 * naive + torch.finfo(torch.bfloat16).eps
    assert relative_error(got, exact) <= allowed
    assert relative_error(by_float32, exact) <= allowed


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
