"""Layers in one piece: what holds for each of them beside test_operators.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import c2d_kernels
from c2d_kernels import native
from tests.kernels.cases import CASES
from tests.kernels.rows import Case

needs_native = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

LAYERS = [case for case in CASES.values() if case.composed]
WITH_IMAGES = [case for case in LAYERS if case.shapes["x"][0]]
ONE_EACH = list({case.operator: case for case in WITH_IMAGES}.values())


@needs_native
@pytest.mark.parametrize("case", WITH_IMAGES, ids=lambda case: case.name)
def test_bitwise_the_same_for_any_threads(case: Case) -> None:
    tensors, before = case.tensors(torch.float32), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with c2d_kernels.backend("cpu"):
                results.append(case.call(tensors))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_native
@pytest.mark.parametrize("name", ["conv-ffn-norm-last", "dual-hit"])
def test_tiles_of_a_map_do_not_show(name: str) -> None:
    """A pixel's value is bitwise the same wherever tiles are cut."""
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    generator = torch.Generator().manual_seed(1)
    tensors["x"] = torch.randn(1, 80, 300, 18, generator=generator)
    with c2d_kernels.backend("cpu"):
        whole = case.call(tensors)
        part = case.call({**tensors, "x": tensors["x"][:, 21:70, 77:290]})
    assert torch.equal(part[:, 2:-2, 2:-2], whole[:, 23:68, 79:288])


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    if isa not in torch.ops.c2d_native.build_info().split("(in use")[0].split():
        pytest.skip(f"{isa} is not compiled in")
    tests = ["test_float64_equals_reference", "test_numerics_rule"]
    tests = [f"{Path(__file__).with_name('test_operators.py')}::{name}" for name in tests]
    mine = " or ".join(case.name for case in LAYERS)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", f"({mine}) and not float16 and not -op and not reference]", *tests],
        env={**os.environ, "C2D_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.operator)
def test_a_composed_layer_keeps_the_dtype_under_autocast(case: Case, dtype: torch.dtype) -> None:
    if case.operator == "dual_features" and dtype == torch.float16:
        pytest.skip("autocast to bfloat16 has no torch.cat of float16 on a CPU")
    tensors = case.tensors(dtype)
    for x in tensors.values():
        x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert case.call(tensors).dtype == dtype
