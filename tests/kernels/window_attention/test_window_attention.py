"""The native kernels of attention in windows where test_operators.py does not look."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native

pytestmark = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

# name: (B, H, W), head_dim, window, heads, shift
SHAPES = {
    "w8-h6-d30-shift": ((2, 16, 24), 30, 8, 6, 4),
    "w8-d10-wide": ((1, 8, 40), 10, 8, 6, 0),
    "w8-d12-tall": ((1, 40, 8), 12, 8, 2, 7),
    "w16-d36": ((1, 32, 16), 36, 16, 4, 8),
    "w16-d15": ((1, 16, 32), 15, 16, 2, 0),
    "w32-d8": ((1, 32, 64), 8, 32, 1, 16),
    "w12-d16": ((1, 24, 12), 16, 12, 1, 6),
    "w3-d5": ((2, 9, 6), 5, 3, 3, 1),
    "w6-d64": ((1, 12, 6), 64, 6, 1, 3),
    "w1-d1": ((1, 1, 1), 1, 1, 1, 0),
    "w1-d3-map": ((2, 3, 4), 3, 1, 2, 0),
}
PERMUTED = {
    "w16-d10-shift": ((1, 32, 16), 10, 16, 6, 8),
    "w8-d30": ((2, 8, 24), 30, 8, 6, 4),
    "w22-d6": ((1, 22, 22), 6, 22, 2, 2),
    "w2-d4": ((1, 2, 6), 4, 2, 1, 0),
    "w6-d2": ((1, 6, 12), 2, 6, 6, 2),
}


def inputs(shape: tuple, permuted: bool, dtype: torch.dtype) -> tuple[list[Tensor], dict]:
    size, head_dim, window, heads, shift = shape
    channels, side = head_dim * heads, (window if permuted else 2 * window) - 1
    generator = torch.Generator().manual_seed(3)
    widths = (channels, channels // 2) if permuted else (3 * channels,)
    shapes = [*((*size, width) for width in widths), (side * side, heads)]
    wide = torch.promote_types(dtype, torch.float32)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    tensors = [x.to(dtype) for x in drawn[:-1]] + [drawn[-1].to(wide)]
    return tensors, {"window_size": window, "num_heads": heads, "shift": shift}


def run(tensors: list[Tensor], options: dict, backend: str = "cpu") -> list[Tensor]:
    """The output and all gradients."""
    permuted = len(tensors) == 3
    call = c2d_kernels.permuted_window_attention if permuted else c2d_kernels.window_attention
    tensors = [x.detach().requires_grad_() for x in tensors]
    with c2d_kernels.backend(backend):
        out = call(*tensors, **options)
        generator = torch.Generator().manual_seed(4)
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    # Gradients of a softmax over one key are zero: there is nothing to be relative to.
    pairs = zip(found, exact, strict=True)
    return [((x.double() - y).abs().max() / y.abs().max().clamp(min=1e-3)).item() for x, y in pairs]


def every_shape(function):
    cases = [(s, False, name) for name, s in SHAPES.items()]
    cases += [(s, True, "permuted-" + name) for name, s in PERMUTED.items()]
    parameters = [pytest.param(s, permuted, id=name) for s, permuted, name in cases]
    return pytest.mark.parametrize(("shape", "permuted"), parameters)(function)


@every_shape
def test_float64_equals_reference(shape, permuted) -> None:
    tensors, options = inputs(shape, permuted, torch.float64)
    for error in errors(run(tensors, options), run(tensors, options, "reference")):
        assert error <= 1e-12


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_the_formula(shape, permuted, dtype) -> None:
    tensors, options = inputs(shape, permuted, dtype)
    exact = run([x.double() for x in tensors], options, "reference")
    naive = errors(run(tensors, options, "reference"), exact)
    for got, plain in zip(errors(run(tensors, options), exact), naive, strict=True):
        assert got <= 2 * plain + torch.finfo(dtype).eps


def test_slices_strides_and_two_calls_in_a_row() -> None:
    whole = torch.randn(2, 30, 16, 16, dtype=torch.float64)
    table = torch.randn(49, 2, 2, dtype=torch.float64)[..., 0]
    views = [
        whole.permute(0, 2, 3, 1),
        whole.permute(0, 3, 2, 1)[:, :8, 4:12, 6:24],
        torch.randn(1, 4, 8, 12, dtype=torch.float64).expand(3, -1, -1, -1),
    ]
    for qkv in views:
        options = {"window_size": 4, "num_heads": 2, "shift": 2}
        got = run([qkv, table], options)
        want = run([qkv.contiguous(), table.contiguous()], options, "reference")
        assert max(errors(got, want)) <= 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["scale-1", "scale-1e4"])
def test_huge_activations_stay_finite(scale: float) -> None:
    tensors, options = inputs(SHAPES["w8-d10-wide"], False, torch.float32)
    tensors[0] *= 1e4
    options["scale"] = scale
    got, want = run(tensors, options), run(tensors, options, "reference")
    assert all(torch.isfinite(x).all() for x in got)
    # The largest score takes all: the output is some row of v.
    assert errors(got[:1], [want[0].double()])[0] <= 1e-6


@pytest.mark.parametrize("permuted", [False, True], ids=["window", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_masked_keys_weigh_nothing(dtype: torch.dtype, permuted: bool) -> None:
    """exp(-100) is a denormal number in float32, with which processors are slow.

    With all scores equal but for the mask, the output and the gradient of v are the weights.
    """
    tensors, options = inputs(((1, 8, 8), 4, 8, 1, 4), permuted, dtype)
    tensors = [torch.zeros_like(x) for x in tensors]
    (tensors[1] if permuted else tensors[0])[:, :2, :2, -1] = 1  # v of the last channel
    results = run(tensors, options), run(tensors, options, "reference")
    for got, want in zip(*results, strict=True):
        tiny = torch.finfo(torch.float32).tiny
        assert ((got == 0) | (got.abs() >= tiny)).all()
        torch.testing.assert_close(got, want, atol=1e-6, rtol=2e-2)
    out = results[0][0][..., -1].float()
    assert (out[:, 4:] == 0).all() and (out[:, :, 4:] == 0).all() and (out[:, :4, :4] > 0).all()


def test_scores_far_below_the_largest_weigh_nothing() -> None:
    """Scores from 0 down to -150: what is under 2^-64 is 0, and no weight is denormal."""
    qkv = torch.zeros(1, 16, 16, 3)
    qkv[..., 0] = 1
    qkv[..., 1] = -torch.linspace(0, 150, 256).reshape(16, 16)
    table = torch.zeros(961, 1)
    for place in (0, 40, 100, 200):
        qkv[..., 2] = 0
        qkv[..., 2].view(-1)[place] = 1
        found = run([qkv, table], {"window_size": 16, "num_heads": 1, "scale": 1.0})
        score = qkv[..., 1].view(-1)[place].item()
        weight = found[0].max().item()
        if score > -44:
            weights = qkv[..., 1].double().view(-1).softmax(0)
            assert weight == pytest.approx(weights[place].item(), rel=1e-5)
        else:
            assert weight == 0


def test_not_a_number_is_not_hidden() -> None:
    qkv = torch.zeros(1, 4, 8, 6)
    qkv[0, 1, 2, 3] = float("nan")  # in k of the first window
    with c2d_kernels.backend("cpu"):
        out = c2d_kernels.window_attention(qkv, torch.zeros(49, 1), window_size=4, num_heads=1)
    assert torch.isnan(out[:, :, :4]).all() and torch.isfinite(out[:, :, 4:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bias_gradient_over_many_windows(dtype) -> None:
    """Sums over more than 10^4 windows, where a half-precision sum would have stopped growing."""
    tensors, options = inputs(((4, 104, 104), 2, 2, 1, 1), False, dtype)  # 10816 windows
    exact = run([x.double() for x in tensors], options, "reference")[2]
    (naive,) = errors([run(tensors, options, "reference")[2]], [exact])
    (got,) = errors([run(tensors, options)[2]], [exact])
    assert got <= 2 * naive + torch.finfo(torch.float32).eps


def test_bitwise_the_same_for_any_threads() -> None:
    tensors, options = inputs(((2, 48, 40), 10, 8, 3, 4), False, torch.float32)
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


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    if isa not in torch.ops.c2d_native.build_info().split("(in use")[0].split():
        pytest.skip(f"{isa} is not compiled in")
    tests = ["test_float64_equals_reference", "test_as_exact_as_the_formula"]
    tests = [f"{__file__}::{name}" for name in tests]
    chosen = ["-k", "not str and (w8 or w3 or w16-d15 or w2) and not float16"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *chosen, *tests],
        env={**os.environ, "C2D_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


REFUSED = {
    "window": ({"window_size": 3}, "multiple of window_size"),
    "no-window": ({"window_size": 0}, "must be positive"),
    "heads": ({"num_heads": 4}, "num_heads must divide"),
    "shift": ({"shift": 4}, "shift must be"),
    "table": ({"bias_table": torch.zeros(48, 2)}, "bias_table must be"),
    "table-type": ({"bias_table": torch.zeros(49, 2).double()}, "type of q"),
    "half": ({"q": torch.zeros(1, 4, 4, 18).half()}, "float32 or float64"),
    "dimensions": ({"q": torch.zeros(4, 4, 18)}, "dimensions"),
    "channels": ({"q": torch.zeros(1, 4, 4, 16)}, "3C channels"),
    "kv": ({"kv": torch.zeros(1, 4, 4, 8)}, "kv must be"),
    "kv-type": ({"kv": torch.zeros(1, 4, 4, 9).double()}, "type of q"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_direct_calls_are_refused(change: dict, message: str) -> None:
    arguments = {
        "q": torch.zeros(1, 4, 4, 18),
        "kv": None,
        "bias_table": torch.zeros(49, 2),
        "window_size": 4,
        "num_heads": 2,
        "shift": 0,
        "scale": 1.0,
    }
    assert torch.ops.c2d_native.window_attention(**arguments).shape == (1, 4, 4, 6)
    if "kv" in change:
        change = {**change, "q": torch.zeros(1, 4, 4, 20)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2d_native.window_attention(**{**arguments, **change})


def test_a_gradient_of_another_shape_is_refused() -> None:
    q, table = torch.zeros(1, 4, 4, 18), torch.zeros(49, 2)
    op = torch.ops.c2d_native.window_attention_backward
    for grad in (torch.zeros(1, 4, 4, 5), torch.zeros(1, 4, 4, 6).double()):
        with pytest.raises(RuntimeError, match="grad must be"):
            op(grad, q, None, table, 4, 2, 0, 1.0)
