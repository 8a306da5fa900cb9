"""Window attention in Triton: in the interpreter, and on a GPU where one is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import triton_support
from c2d_kernels.ops.window_attention import triton as launch
from tests.kernels.triton_checks import (
    assert_by_the_rule,
    by_reference,
    needs_triton,
    on_gpu,
    relative_error,
    twice,
)
from tests.kernels.triton_worker import Run, interpreter

SWIN = {  # (B, H, W, C, window, heads, shift, scale)
    "one-pixel": (1, 1, 1, 5, 1, 1, 0, None),
    "nine-tokens-heads-of-5": (1, 3, 6, 15, 3, 3, 1, None),
    "wide-shifted": (1, 8, 16, 20, 8, 2, 4, None),
    "tall-heads-of-30": (1, 8, 4, 60, 4, 2, 1, 0.3),
    "one-window-heads-of-64": (1, 4, 4, 64, 4, 1, 2, None),
    "two-blocks-of-keys": (1, 10, 10, 8, 10, 1, 3, None),
    "256-tokens": (1, 16, 16, 10, 16, 1, 8, None),
    "heads-of-12": (1, 4, 8, 24, 4, 2, 1, None),
    "heads-of-16": (1, 8, 4, 32, 4, 2, 2, None),
    "heads-of-32": (1, 6, 12, 64, 6, 2, 3, None),
}
SRFORMER = {
    "one-key": (1, 2, 4, 4, 2, 1, 0, None),
    "heads-straddle-cells": (1, 8, 16, 20, 8, 2, 4, None),
    "own-scale": (2, 6, 6, 12, 6, 1, 2, 0.7),
    "256-queries": (1, 16, 16, 12, 16, 1, 8, None),
}
CASES = [pytest.param("window_attention", *case, id=name) for name, case in SWIN.items()]
CASES += [
    pytest.param("permuted_window_attention", *case, id=f"permuted-{name}")
    for name, case in SRFORMER.items()
]
NAMES = "operator, batch, height, width, channels, window, heads, shift, scale"


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as run:
        yield run


def draw(
    operator: str, batch: int, height: int, width: int, channels: int, window: int, heads: int,
    shift: int = 0, scale: float | None = None, dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, Tensor], dict[str, object]]:  # fmt: skip
    """Tensors and options of a call: features in dtype, the table beside them in float32."""
    permuted = operator == "permuted_window_attention"
    parts = {"q": channels, "kv": channels // 2} if permuted else {"qkv": 3 * channels}
    offsets = window - 1 if permuted else 2 * window - 1
    shapes = {name: (batch, height, width, depth) for name, depth in parts.items()}
    shapes["bias_table"] = (offsets**2, heads)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }
    wide = torch.promote_types(dtype, torch.float32)
    tensors["bias_table"] = tensors["bias_table"].to(wide)
    options = {"window_size": window, "num_heads": heads, "shift": shift, "scale": scale}
    return tensors, options


# --- in the interpreter --------------------------------------------------------------------------


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16],
    ids=["float64", "float32", "float16", "bfloat16"],
)
@pytest.mark.parametrize(NAMES, CASES)
def test_numerics_rule(
    run, monkeypatch, dtype, operator, batch, height, width, channels, window, heads, shift, scale
) -> None:
    case = (operator, batch, height, width, channels, window, heads, shift, scale)
    tensors, options = draw(*case, dtype=dtype)
    actual = run(operator, tensors, options)
    assert_by_the_rule(operator, actual, tensors, options, dtype, monkeypatch)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("operator", ["window_attention", "permuted_window_attention"])
def test_windows_of_1024_tokens(run, operator) -> None:
    tensors, options = draw(operator, 1, 32, 32, 8, 32, 1, 16)
    actual = run(operator, tensors, options)
    for got, want in zip(actual, by_reference(operator, tensors, options), strict=True):
        assert relative_error(got, want) <= 1e-12


@needs_triton
def test_configurations_back_to_back(run) -> None:
    """Nothing compiled for one call serves another of its types: the last repeats the first."""
    calls = [
        draw("window_attention", 1, 8, 12, 10, 4, 2, 2, dtype=torch.float16),
        draw("window_attention", 1, 6, 6, 10, 3, 1, 0, 0.5, dtype=torch.float32),
        draw("window_attention", 1, 10, 10, 10, 10, 2, 3, dtype=torch.float32),
    ]
    first = [run("window_attention", *call) for call in calls]
    for found, call in zip(first[::-1], calls[::-1], strict=True):
        again = run("window_attention", *call)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        exact = {name: x.double() for name, x in call[0].items()}
        for got, want in zip(found, by_reference("window_attention", exact, call[1]), strict=True):
            assert relative_error(got, want) <= 5e-3


@needs_triton
def test_slices_of_a_larger_map(run) -> None:
    """Crops of a wider map, by their strides; channels that are not side by side are copied."""
    whole, options = draw("window_attention", 2, 9, 7, 24, 3, 2, 1)
    for crop in (
        whole["qkv"][1:, 3:, 1:, 12:36],
        whole["qkv"][:1, :3, :3, :24].transpose(1, 2),
        whole["qkv"][:1, :6, :3, ::3],
    ):
        tensors = {"qkv": crop, "bias_table": whole["bias_table"]}
        actual = run("window_attention", tensors, options)
        for got, want in zip(
            actual, by_reference("window_attention", tensors, options), strict=True
        ):
            assert relative_error(got, want) <= 1e-12
    tensors, options = draw("permuted_window_attention", 1, 4, 8, 24, 4, 2, 2)
    tensors["q"], tensors["kv"] = tensors["q"][..., 12:], tensors["kv"][..., 3:9]
    actual = run("permuted_window_attention", tensors, options)
    expected = by_reference("permuted_window_attention", tensors, options)
    for got, want in zip(actual, expected, strict=True):
        assert relative_error(got, want) <= 1e-12


@needs_triton
@pytest.mark.parametrize("operator", ["window_attention", "permuted_window_attention"])
def test_no_images(run, operator) -> None:
    tensors, options = draw(operator, 0, 8, 8, 8, 4, 2)
    out, *gradients = run(operator, tensors, options)
    assert out.shape == (0, 8, 8, 8)
    assert [g.shape for g in gradients] == [x.shape for x in tensors.values()]
    assert not gradients[-1].any()


@needs_triton
@pytest.mark.parametrize("window", [4, 10], ids=["one-block", "blocks"])
def test_huge_scores_stay_finite(run, window) -> None:
    """Scores near 3e9, far beyond float16: softmax takes the largest and must not make a NaN."""
    tensors, options = draw("window_attention", 1, window, window, 5, window, 1, 1)
    tensors["qkv"] = (tensors["qkv"] * 2e4).clamp(-6e4, 6e4).half()
    tensors["bias_table"] = tensors["bias_table"].float()
    out, *gradients = run("window_attention", tensors, options)
    assert (
        relative_error(out, by_reference("window_attention", tensors, options)[0].double()) < 2e-3
    )
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@needs_triton
@pytest.mark.parametrize("runs", [1, 7, 64])
def test_bias_gradient_over_many_windows(run, runs) -> None:
    """64 windows in bfloat16, in one run, in runs of 10 (the last shorter), and one by one."""
    tensors, options = draw("window_attention", 1, 16, 16, 6, 2, 1, 1, dtype=torch.bfloat16)
    actual = run("window_attention", tensors, options, RUNS=runs)[-1]
    exact = {name: x.double() for name, x in tensors.items()}
    expected = by_reference("window_attention", exact, options)[-1]
    assert actual.dtype == torch.float32
    assert relative_error(actual, expected) <= 1e-5


@needs_triton
def test_tiles_of_the_bias_gradient_walk_runs_of_windows(run) -> None:
    """Windows of 16 tiles, two windows a run, and a last run that is shorter."""
    tensors, options = draw("window_attention", 1, 10, 30, 5, 10, 1, 3)
    actual = run("window_attention", tensors, options, TILE_PROGRAMS=32)
    for got, want in zip(actual, by_reference("window_attention", tensors, options), strict=True):
        assert relative_error(got, want) <= 1e-12


@needs_triton
def test_repeats_bitwise(run) -> None:
    tensors, options = draw("window_attention", 1, 8, 12, 10, 4, 2, 2, dtype=torch.float16)
    first, second = (run("window_attention", tensors, options, RUNS=2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


# --- what it refuses -----------------------------------------------------------------------------


def refusal(*case: int, dtype: torch.dtype = torch.float32) -> str | None:
    tensors, options = draw("window_attention", *case, dtype=dtype)
    return launch.window_attention.can_run(
        *tensors.values(), options["window_size"], options["num_heads"], 0, 1.0
    )


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ((1, 33, 33, 3, 33, 1), "it takes windows up to 32, and this one is 33"),
        ((1, 2, 2, 65, 2, 1), "it takes heads of up to 64 channels, and these have 65"),
    ],
    ids=["window", "head"],
)
def test_refuses_sizes(case, reason) -> None:
    assert refusal(*case) == reason


@needs_triton
def test_refuses_tensors_on_the_cpu(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert refusal(1, 2, 2, 4, 2, 1) == "Triton runs on CUDA tensors, and these are on cpu"


@needs_triton
def test_the_interpreter_runs_only_where_it_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(triton_support, "_INSTALLED", True)
    monkeypatch.setattr(triton_support, "_INTERPRETING", True)
    reason = "Triton's interpreter is on, which runs only where it is asked for by name"
    assert refusal(1, 2, 2, 4, 2, 1) == reason
    with c2d_kernels.backend("triton"):
        assert refusal(1, 2, 2, 4, 2, 1) is None


def test_refuses_without_triton(monkeypatch) -> None:
    monkeypatch.setattr(triton_support, "_INSTALLED", False)
    assert refusal(1, 2, 2, 4, 2, 1) == "triton is not installed"


@needs_triton
def test_refuses_float64_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(triton_support, "_INTERPRETING", False)
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1, device="cuda", dtype=torch.float64)
        assert "these are float64" in triton_support.refusal(x)
        assert triton_support.refusal(x.float()) is None


# --- on a GPU ------------------------------------------------------------------------------------

LARGE = [
    pytest.param("window_attention", 2, 64, 96, 60, 8, 6, 4, None, id="swinir-l"),
    pytest.param("window_attention", 1, 32, 64, 48, 16, 4, 8, None, id="hiet-mambairv2"),
    pytest.param("window_attention", 1, 32, 64, 60, 32, 6, 16, None, id="1024-tokens"),
    pytest.param("permuted_window_attention", 1, 48, 32, 60, 16, 6, 8, None, id="srformer-l"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(NAMES, CASES + LARGE)
@on_gpu
def test_on_a_gpu(
    monkeypatch, dtype, operator, batch, height, width, channels, window, heads, shift, scale
) -> None:
    case = (operator, batch, height, width, channels, window, heads, shift, scale)
    tensors, options = draw(*case, dtype=dtype)
    tensors = {name: x.cuda() for name, x in tensors.items()}
    actual = twice(operator, tensors, options)
    assert_by_the_rule(operator, actual, tensors, options, dtype, monkeypatch)
