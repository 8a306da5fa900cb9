"""The native kernel of spatial correlation where test_operators.py does not look."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native
from c2d_kernels.ops.spatial_correlation import reference

pytestmark = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

# name: (B, H, W), head_dim, heads, window, base
SHAPES = {
    "w4-d5": ((2, 8, 12), 5, 6, 4, 8),
    "w8-d5-h6": ((1, 16, 24), 5, 6, 8, 8),
    "w8-base4-d10": ((1, 16, 8), 10, 2, 8, 4),
    "w16-d5-h6": ((2, 16, 32), 5, 6, 16, 8),
    "w16-base4-d12": ((1, 32, 16), 12, 3, 16, 4),
    "w32-d10": ((1, 32, 64), 10, 1, 32, 8),
    "w64-d5": ((1, 64, 64), 5, 2, 64, 8),
    "w64x32-base4": ((1, 64, 32), 5, 1, (64, 32), 4),
    "w8x32-d5": ((1, 16, 32), 5, 3, (8, 32), 8),
    "w32x8-d12": ((2, 32, 8), 12, 1, (32, 8), 8),
    "w12x20-base4": ((1, 12, 40), 7, 2, (12, 20), 4),
    "w6-base3-d1": ((1, 12, 6), 1, 3, 6, 3),
    "w16-base16-d5": ((1, 16, 16), 5, 2, 16, 16),  # more cells than a tile has
    "w2x64-d13": ((1, 2, 64), 13, 1, (2, 64), 8),
}


def inputs(shape: tuple, dtype: torch.dtype) -> tuple[list[Tensor], dict]:
    """q, v, weight, weight_bias, bias_table; parameters in float32 beside half precision."""
    (batch, map_height, map_width), head_dim, heads, window, base = shape
    height, width = window if isinstance(window, tuple) else (window, window)
    channels = heads * head_dim
    cell = (height // min(height, base)) * (width // min(width, base))
    shapes = [(batch, map_height, map_width, channels)] * 2
    shapes += [(1, cell), (1,), ((2 * height - 1) * (2 * width - 1), heads)]
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    wide = torch.promote_types(dtype, torch.float32)
    tensors = [x.to(dtype) for x in drawn[:2]] + [x.to(wide) for x in drawn[2:]]
    return tensors, {"window_size": window, "base_window": base, "num_heads": heads}


def run(tensors: list[Tensor], options: dict, backend: str = "cpu") -> list[Tensor]:
    """The output, dq, dv, the gradients of weight and weight_bias together, that of the table.

    Together, because the error of one number alone can be nothing by chance.
    """
    tensors = [x.detach().requires_grad_() for x in tensors]
    with c2d_kernels.backend(backend):
        out = c2d_kernels.spatial_correlation(*tensors, **options)
        generator = torch.Generator().manual_seed(4)
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        dq, dv, dweight, dweight_bias, dtable = torch.autograd.grad(out, tensors, grad)
    return [out.detach(), dq, dv, torch.cat([dweight[0], dweight_bias]), dtable]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    pairs = zip(found, exact, strict=True)
    return [((x.double() - y).abs().max() / y.abs().max()).item() for x, y in pairs]


every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@every_shape
def test_float64_equals_reference(shape: tuple) -> None:
    tensors, options = inputs(shape, torch.float64)
    for error in errors(run(tensors, options), run(tensors, options, "reference")):
        assert error <= 1e-12


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_the_formula(shape: tuple, dtype: torch.dtype) -> None:
    tensors, options = inputs(shape, dtype)
    exact = run([x.double() for x in tensors], options, "reference")
    naive = errors(run(tensors, options, "reference"), exact)
    for got, plain in zip(errors(run(tensors, options), exact), naive, strict=True):
        assert got <= 2 * plain + torch.finfo(dtype).eps


def test_slices_and_strides() -> None:
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(2, 16, 16, 20, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 1, generator=generator, dtype=torch.float64).t()
    table = torch.randn(225, 4, generator=generator, dtype=torch.float64)[:, ::2]
    pairs = [
        (whole[..., :10], whole[..., 10:]),
        (whole[:, :8, 8:, 5:15], whole[:, 8:, :8, 2:12]),
        (whole.permute(0, 2, 1, 3)[..., 3:13], whole.permute(0, 3, 1, 2)[:, :16, :, 6:]),
        (whole[:1, :, :, :10].expand(2, -1, -1, -1), whole[:, :1, :1, :10].expand(2, 16, 16, 10)),
    ]
    options = {"window_size": 8, "base_window": 4, "num_heads": 2}
    for q, v in pairs:
        parameters = [weight, weight.new_ones(1), table]
        got = run([q, v, *parameters], options)
        want = run([x.contiguous() for x in (q, v, *parameters)], options, "reference")
        assert max(errors(got, want)) <= 1e-12


def test_no_batch() -> None:
    tensors, options = inputs(((0, 16, 16), 5, 2, 8, 4), torch.float32)
    out, dq, dv, *parameters = run(tensors, options)
    assert out.shape == dq.shape == dv.shape == (0, 16, 16, 10)
    assert [x.shape for x in parameters] == [(5,), (225, 2)]
    assert all((x == 0).all() for x in parameters)


# 1000 windows of 4 x 4, 81 of 16 x 16: several groups, and more than a group sums in float32.
@pytest.mark.parametrize(
    "shape",
    [((10, 40, 40), 5, 2, 4, 8), ((1, 144, 144), 5, 1, 16, 8)],
    ids=["1000-windows", "81-windows"],
)
def test_parameter_gradients_over_many_windows(shape: tuple) -> None:
    tensors, options = inputs(shape, torch.float32)
    exact = run([x.double() for x in tensors], options, "reference")
    naive = errors(run(tensors, options, "reference"), exact)[3:]
    for got, plain in zip(errors(run(tensors, options), exact)[3:], naive, strict=True):
        assert got <= 2 * plain + torch.finfo(torch.float32).eps


# The numbers of windows are more and fewer than whole windows, or groups of them, keep busy.
@pytest.mark.parametrize(
    "shape",
    [
        ((2, 48, 40), 5, 6, 8, 8),
        ((1, 120, 96), 5, 1, 12, 4),
        ((1, 32, 32), 5, 6, 16, 8),
        ((1, 64, 64), 5, 6, 64, 8),
    ],
    ids=["60-windows", "80-windows", "4-windows", "1-window"],
)
def test_bitwise_the_same_for_any_threads(shape: tuple) -> None:
    tensors, options = inputs(shape, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(tensors, options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_not_a_number_stays_in_its_window_and_head() -> None:
    tensors, options = inputs(((1, 8, 16), 5, 2, 8, 8), torch.float32)
    tensors[1][0, 3, 4, 6] = float("nan")  # v, second head of the first window
    with c2d_kernels.backend("cpu"):
        out = c2d_kernels.spatial_correlation(*tensors, **options)
    assert torch.isnan(out[:, :, :8, 6]).all()
    assert torch.isfinite(out[:, :, :8, :5]).all() and torch.isfinite(out[:, :, 8:]).all()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    if isa not in torch.ops.c2d_native.build_info().split("(in use")[0].split():
        pytest.skip(f"{isa} is not compiled in")
    tests = ["test_float64_equals_reference", "test_as_exact_as_the_formula"]
    tests = [f"{__file__}::{name}" for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", "not float16 and (w4 or w8- or w16-b or w12 or w2x)", *tests],
        env={**os.environ, "C2D_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


REFUSED = {
    "window": ({"window_height": 3, "base_height": 3}, "multiple of the window"),
    "base": ({"base_width": 3}, "multiple of the base"),
    "no-window": ({"window_width": 0}, "must be positive"),
    "heads": ({"num_heads": 4}, "num_heads must divide"),
    "weight": ({"weight": torch.zeros(1, 3)}, "weight must be"),
    "weight-bias": ({"weight_bias": torch.zeros(2)}, "weight_bias must be"),
    "table": ({"bias_table": torch.zeros(48, 2)}, "bias_table must be"),
    "table-type": ({"bias_table": torch.zeros(49, 2).double()}, "type of q"),
    "half": ({"q": torch.zeros(1, 4, 8, 6).half()}, "float32 or float64"),
    "v-shape": ({"v": torch.zeros(1, 4, 4, 6)}, "size"),
    "v-type": ({"v": torch.zeros(1, 4, 8, 6).double()}, "type of q"),
    "dimensions": ({"q": torch.zeros(4, 8, 6)}, "dimensions"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_direct_calls_are_refused(change: dict, message: str) -> None:
    arguments = {
        "q": torch.zeros(1, 4, 8, 6),
        "v": torch.zeros(1, 4, 8, 6),
        "weight": torch.zeros(1, 4),
        "weight_bias": torch.zeros(1),
        "bias_table": torch.zeros(49, 2),
        "window_height": 4,
        "window_width": 4,
        "base_height": 2,
        "base_width": 2,
        "num_heads": 2,
    }
    assert torch.ops.c2d_native.spatial_correlation(**arguments).shape == (1, 4, 8, 6)
    backward = torch.ops.c2d_native.spatial_correlation_backward
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2d_native.spatial_correlation(**{**arguments, **change})
    with pytest.raises(RuntimeError, match=message):
        backward(grad=torch.zeros(1, 4, 8, 6), **{**arguments, **change})


def test_the_reference_is_the_mean_of_the_full_attention_map() -> None:
    """The pooled bias and p^T p are rearrangements: the definition, token by token, is the same."""
    tensors, options = inputs(((1, 6, 8), 2, 2, (6, 8), 2), torch.float64)
    q, v, weight, weight_bias, table = tensors
    out = torch.zeros_like(q)
    dense = table.reshape(11, 15, 2)
    for head in range(2):
        channels = slice(2 * head, 2 * head + 2)
        for n in range(48):
            y, x = divmod(n, 8)
            for cell in range(4):
                top, left = cell // 2 * 3, cell % 2 * 4
                tokens = [(top + i, left + j) for i in range(3) for j in range(4)]
                p = weight_bias + sum(
                    weight[0, t] * v[0, i, j, channels] for t, (i, j) in enumerate(tokens)
                )
                bias = sum(dense[y - i + 5, x - j + 7, head] for i, j in tokens) / 12
                out[0, y, x, channels] += (q[0, y, x, channels] @ p / 2 + bias) * p
    assert errors([reference.spatial_correlation(*tensors, 6, 8, 2, 2, 2)], [out])[0] <= 1e-12
    assert errors(run(tensors, options)[:1], [out])[0] <= 1e-12
