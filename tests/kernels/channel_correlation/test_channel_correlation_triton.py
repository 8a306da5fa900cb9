"""Channel correlation in Triton: in the interpreter, as ptxas sees it, and on a GPU if there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from c2d_kernels.ops.channel_correlation import triton as launch
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

CASES = {  # (B, H, W, C, window)
    "one-pixel": (2, 1, 1, 3, 8),
    "whole-windows": (1, 8, 12, 10, 4),
    "border-windows": (2, 13, 18, 10, 8),
    "oblong-window": (1, 11, 23, 6, (4, 10)),
    "windows-of-one": (1, 3, 4, 5, 1),
    "split-windows": (1, 20, 35, 30, 32),
    "smaller-than-a-window": (1, 5, 7, 60, 64),
    "hit-sr-64": (1, 66, 20, 5, 64),
}
LARGE = {
    "hiet-16": (2, 96, 80, 30, 16),
    "hiet-64": (1, 150, 130, 60, 64),
}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as run:
        yield run


def draw(
    *shape: int, window: int | tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return {"q": q, "v": v}, {"window_size": window}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16],
    ids=["float64", "float32", "float16", "bfloat16"],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_numerics_rule(run, monkeypatch, case, dtype) -> None:
    *shape, window = case
    tensors, options = draw(*shape, window=window, dtype=dtype)
    actual = run("channel_correlation", tensors, options)
    assert_by_the_rule("channel_correlation", actual, tensors, options, dtype, monkeypatch)


@needs_triton
def test_halves_of_one_map(run) -> None:
    """q and v as the halves of a crop, each by its own strides; and channels far apart, copied."""
    whole, options = draw(1, 12, 9, 20, window=(5, 4))
    for x in (whole["q"][:, 2:, :7], whole["q"].transpose(1, 3)):
        q, v = x.chunk(2, -1)
        tensors = {"q": q[..., :4], "v": v[..., :4]}
        actual = run("channel_correlation", tensors, options)
        expected = by_reference("channel_correlation", tensors, options)
        for got, want in zip(actual, expected, strict=True):
            assert relative_error(got, want) <= 1e-12


@needs_triton
def test_no_images(run) -> None:
    tensors, options = draw(0, 8, 8, 4, window=8)
    assert [x.shape for x in run("channel_correlation", tensors, options)] == [(0, 8, 8, 4)] * 3


@needs_triton
def test_repeats_bitwise(run) -> None:
    tensors, options = draw(1, 17, 20, 5, window=20, dtype=torch.float16)
    first, second = (run("channel_correlation", tensors, options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_refuses_more_channels() -> None:
    tensors, _ = draw(1, 2, 2, 65, window=2)
    reason = launch.channel_correlation.can_run(*tensors.values(), 2, 2)
    assert reason == "it takes up to 64 channels, and these are 65"


# dtype, window, channels -> registers a thread measured with triton 3.9 on sm_90. None spills.
USAGE = {
    ("bf16", 4, 30): {"forward": 56, "backward": 64},
    ("bf16", 16, 30): {"forward": 66, "backward": 108},
    ("bf16", 64, 30): {"gram": 48, "forward": 54, "backward": 72},
    ("bf16", 64, 60): {"gram": 80, "forward": 80, "backward": 92},
    ("fp32", 4, 30): {"forward": 56, "backward": 72},
    ("fp32", 16, 30): {"forward": 80, "backward": 92},
    ("fp32", 64, 30): {"gram": 48, "forward": 62, "backward": 64},
    ("fp32", 64, 60): {"gram": 70, "forward": 64, "backward": 78},
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("case", "expected"), USAGE.items(), ids=["-".join(map(str, case)) for case in USAGE]
)
def test_registers_and_spills(case, expected, architecture, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from c2d_kernels.ops.channel_correlation import triton_kernels

    name, window, channels = case
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    q = torch.empty(1, 128, 128, channels, dtype=dtype)
    grid, _, constants = launch._launch(q, window, window)
    fixed = {**constants, "GIVEN": grid[1] > 1}
    for kernel, registers in expected.items():
        compiled = getattr(triton_kernels, kernel)
        found = usage(compiled, architecture, dtype, fixed, constants["num_warps"])
        assert found.stack == 0, kernel
        assert found.shared <= 64 * 1024, kernel
        if architecture == 90:
            assert found.registers <= 1.1 * registers, kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", (CASES | LARGE).values(), ids=(CASES | LARGE).keys())
@on_gpu
def test_on_a_gpu(monkeypatch, case, dtype) -> None:
    *shape, window = case
    tensors, options = draw(*shape, window=window, dtype=dtype)
    tensors = {name: x.cuda() for name, x in tensors.items()}
    actual = twice("channel_correlation", tensors, options)
    assert_by_the_rule("channel_correlation", actual, tensors, options, dtype, monkeypatch)
