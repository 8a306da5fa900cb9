"""Spatial correlation in Triton: in the interpreter, as ptxas sees it, and on a GPU if there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from c2d_kernels.ops.spatial_correlation import triton as launch
from tests.kernels.triton_checks import (
    assert_by_the_rule,
    by_reference,
    needs_triton,
    on_gpu,
    relative_error,
    twice,
)
from tests.kernels.triton_usage import usage
from tests.kernels.triton_worker import Run, interpreter

OPERATOR, LINEAR = "spatial_correlation", ("weight", "weight_bias")
CASES = {  # (B, H, W, C, window, base, heads), settings of the module
    "windows-of-one": ((1, 2, 3, 6, 1, 8, 2), {}),
    "hit-sr-4": ((2, 8, 4, 10, 4, 8, 2), {}),
    "hit-sr-8": ((1, 8, 16, 10, 8, 8, 1), {}),
    "hit-sr-16": ((1, 16, 32, 12, 16, 8, 1), {}),
    "hit-sr-32": ((1, 32, 32, 10, 32, 8, 2), {}),
    "hit-sr-64": ((1, 64, 64, 5, 64, 8, 1), {}),
    "base-of-4": ((1, 16, 16, 10, 16, 4, 1), {}),
    "oblong-window": ((1, 16, 12, 24, (8, 12), 4, 2), {}),
    "oblong-base": ((1, 4, 16, 6, (2, 8), 8, 2), {}),
    "split-unevenly": ((1, 12, 24, 10, 12, 4, 2), {"PART": 64}),
    "programs-of-many": ((1, 8, 24, 15, 8, 8, 3), {"PROGRAMS": 4}),
}
LARGE = {
    "hit-sr-8-large": ((2, 96, 80, 30, 8, 8, 6), {}),
    "hit-sr-64-large": ((2, 128, 192, 60, 64, 8, 6), {}),
}
DTYPES = [torch.float64, torch.float32, torch.float16]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as run:
        yield run


def draw(
    batch: int,
    height: int,
    width: int,
    channels: int,
    window: int | tuple[int, int],
    base: int,
    heads: int,
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Inputs, q and v being halves of one map."""
    generator = torch.Generator().manual_seed(0)
    tall, wide = window if isinstance(window, tuple) else (window, window)
    area = tall // min(tall, base) * (wide // min(wide, base))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, v = normal(batch, height, width, 2 * channels).to(dtype).chunk(2, -1)
    tensors = {
        "q": q,
        "v": v,
        "weight": (normal(1, area) / area**0.5).to(dtype),
        "weight_bias": normal(1).to(dtype),
        "bias_table": normal((2 * tall - 1) * (2 * wide - 1), heads).to(dtype),
    }
    return tensors, {"window_size": window, "base_window": base, "num_heads": heads}


def assert_exact(actual: list[Tensor], tensors: dict[str, Tensor], options: dict) -> None:
    expected = by_reference(OPERATOR, tensors, options)
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape and relative_error(got, want) <= 1e-12


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("shape", "settings"), CASES.values(), ids=CASES.keys())
def test_numerics_rule(run, monkeypatch, shape, settings, dtype) -> None:
    tensors, options = draw(*shape, dtype=dtype)
    actual = run(OPERATOR, tensors, options, **settings)
    assert_by_the_rule(OPERATOR, actual, tensors, options, dtype, monkeypatch, pair=LINEAR)


@needs_triton
@pytest.mark.parametrize("settings", [{}, {"PART": 32}], ids=["whole", "split"])
def test_any_strides(run, settings) -> None:
    """q and v each by its own strides: a crop of a larger map, and channels far apart, copied."""
    tensors, options = draw(2, 16, 16, 6, window=8, base=4, heads=2)
    q, v = tensors["q"], tensors["v"]
    far = v.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for changed in ({"q": q[:, 8:, :8], "v": v[:, :8, 8:]}, {"v": far}):
        inputs = {**tensors, **changed}
        assert_exact(run(OPERATOR, inputs, options, **settings), inputs, options)


@needs_triton
def test_no_images(run) -> None:
    tensors, options = draw(0, 8, 8, 4, window=8, base=4, heads=2)
    out, *gradients = run(OPERATOR, tensors, options)
    assert out.shape == (0, 8, 8, 4)
    assert [x.shape for x in gradients] == [x.shape for x in tensors.values()]
    assert not any(x.any() for x in gradients)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_parameters_in_float32_beside_half_precision(run, dtype) -> None:
    tensors, options = draw(1, 8, 8, 10, window=8, base=4, heads=2, dtype=torch.float32)
    half = {**tensors, "q": tensors["q"].to(dtype), "v": tensors["v"].to(dtype)}
    found, expected = run(OPERATOR, half, options), by_reference(OPERATOR, half, options)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        assert relative_error(got, want.double()) <= 2 * torch.finfo(dtype).eps


@needs_triton
@pytest.mark.parametrize("wanted", ["q", "v", "weight", "weight_bias", "bias_table"])
def test_one_gradient(run, wanted) -> None:
    """A gradient asked for alone is the one that comes with the others."""
    tensors, options = draw(1, 8, 8, 6, window=8, base=4, heads=2)
    options = {**options, **{name: x for name, x in tensors.items() if name != wanted}}
    tensors = {wanted: tensors[wanted]}
    assert_exact(run(OPERATOR, tensors, options), tensors, options)


@needs_triton
def test_repeats_bitwise(run) -> None:
    """Two configurations in turn, so that neither is met by what the other left."""
    calls = [
        (draw(2, 8, 8, 5, window=4, base=4, heads=1, dtype=torch.float16), {}),
        (draw(1, 16, 16, 10, window=16, base=4, heads=2, dtype=torch.float32), {"PART": 96}),
    ]
    first, second = ([run(OPERATOR, *call, **settings) for call, settings in calls] for _ in "12")
    for before, after in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 128, 1, 4, (128, 1), 8, 1), "it takes windows up to 64, and this one is 128"),
        ((1, 16, 16, 4, 16, 16, 1), "it takes up to 64 cells a window, and these are 256"),
        ((1, 8, 8, 66, 8, 8, 2), "it takes heads of up to 32 channels, and these have 33"),
    ],
    ids=["window", "cells", "head"],
)
def test_refusals(shape, reason) -> None:
    tensors, options = draw(*shape)
    window = options["window_size"]
    window = window if isinstance(window, tuple) else (window, window)
    base = [min(side, options["base_window"]) for side in window]
    can_run = launch.spatial_correlation.can_run
    assert can_run(*tensors.values(), *window, *base, options["num_heads"]) == reason


# dtype, window, head_dim -> registers a thread measured with triton 3.9 on sm_90. None spills.
USAGE = {
    ("bf16", 4, 5): {"forward": 61, "backward": 96},
    ("bf16", 8, 5): {"forward": 78, "backward": 146, "backward_bias": 128},
    ("bf16", 16, 5): {"forward": 77, "backward": 150},
    ("bf16", 64, 5): {"reduce": 48, "forward": 104, "backward": 96, "spread": 56},
    ("bf16", 64, 30): {"forward": 102, "backward": 189, "backward_bias": 64},
    ("fp32", 8, 5): {"forward": 64, "backward": 118, "backward_bias": 98},
    ("fp32", 64, 5): {"reduce": 48, "forward": 64, "backward": 121, "spread": 56},
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("case", "expected"), USAGE.items(), ids=["-".join(map(str, case)) for case in USAGE]
)
def test_registers_and_spills(case, expected, architecture, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from c2d_kernels.ops.spatial_correlation import triton_kernels

    name, window, head_dim = case
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    q = torch.empty(1, 64, 64, 6 * head_dim, dtype=dtype)
    sides, base = (window, window), (min(window, 8),) * 2
    for kernel, registers in expected.items():
        if kernel in ("reduce", "spread"):
            constants = launch._cell_launch(q, sides, base)[2]
        elif kernel == "backward_bias":
            constants = launch._bias_constants(q, sides, base, 6)
        else:
            constants = launch._constants(q, sides, base, 6)
        compiled = getattr(triton_kernels, kernel)
        found = usage(compiled, architecture, dtype, constants, constants["num_warps"])
        assert found.stack == 0, kernel
        assert found.shared <= 32 * 1024, kernel
        if architecture == 90:
            assert found.registers <= 1.1 * registers, kernel


@pytest.mark.parametrize(
    "dtype", [*DTYPES[1:], torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch.")
)
@pytest.mark.parametrize(
    ("shape", "settings"), (CASES | LARGE).values(), ids=(CASES | LARGE).keys()
)
@on_gpu
def test_on_a_gpu(monkeypatch, shape, settings, dtype) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(launch, name, value)
    tensors, options = draw(*shape, dtype=dtype)
    tensors = {name: x.cuda() for name, x in tensors.items()}
    actual = twice(OPERATOR, tensors, options)
    assert_by_the_rule(OPERATOR, actual, tensors, options, dtype, monkeypatch, pair=LINEAR)
