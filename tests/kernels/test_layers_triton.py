"""Whole layers in Triton: in the interpreter, as ptxas sees them, and on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import triton_packing
from tests.kernels.cases import AWKWARD, CASES, SMALL
from tests.kernels.triton_checks import needs_triton, on_gpu, relative_error
from tests.kernels.triton_usage import usage
from tests.kernels.triton_worker import Run, interpreter

OPERATORS = ("window_layer", "res_post_norm", "mlp_branch")
LAYERS = [case.name for case in SMALL + AWKWARD if case.operator in OPERATORS]
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as run:
        yield run


def in_triton(name: str, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """The layer of a case by its Triton kernel; called in the interpreter's process, too."""
    tensors = {key: x.to(device) for key, x in CASES[name].tensors(dtype).items()}
    with torch.no_grad(), c2d_kernels.backend("triton"):
        return CASES[name].outputs(tensors)[0].cpu()


def judge(name: str, dtype: torch.dtype, found: Tensor) -> None:
    """Twice the error of the formula with every operation in that dtype, plus one ulp."""
    tensors = CASES[name].tensors(dtype)
    with torch.no_grad(), c2d_kernels.backend("reference"):
        exact = CASES[name].outputs({key: x.double() for key, x in tensors.items()})[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "promote_types", lambda narrow, wide: narrow)
            narrow = {key: x.to(dtype) for key, x in tensors.items()}
            formula = CASES[name].outputs(narrow)[0]
    assert found.shape == exact.shape and found.dtype == dtype
    if found.numel() == 0:
        return
    bound = 1e-12
    if dtype != torch.float64:
        bound = 2 * relative_error(formula, exact) + torch.finfo(dtype).eps
    assert relative_error(found, exact) <= bound


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_numerics_rule(run, name, dtype) -> None:
    judge(name, dtype, run.call(in_triton, name, dtype))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_on_a_gpu(name, dtype) -> None:
    judge(name, dtype, in_triton(name, dtype, "cuda"))


def of_maps_in_places(parts_first: bool) -> list[Tensor]:
    """A layer on maps that are crops and transposes, and on contiguous ones."""
    case = CASES["post-norm"]
    tensors = case.tensors(torch.float64)

    def cropped(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (1, 2, 0, 1))[..., :-1, 1:-2]

    def transposed(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    move = {True: (cropped, transposed), False: (transposed, cropped)}[parts_first]
    moved = {
        key: move[key.startswith("parts")](x) if x.dim() == 4 else x for key, x in tensors.items()
    }
    with torch.no_grad(), c2d_kernels.backend("triton"):
        return [case.outputs(maps)[0] for maps in (tensors, moved)]


@needs_triton
@pytest.mark.parametrize("parts_first", [True, False])
def test_any_strides(run, parts_first) -> None:
    plain, moved = run.call(of_maps_in_places, parts_first)
    assert torch.equal(plain, moved)


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("matrix", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_are_in_the_features_dtype_or_in_the_matrices(features, matrix) -> None:
    dot, total = triton_packing.precisions(features, torch.empty(1, dtype=matrix))
    assert dot == (matrix if features == torch.float32 else features)
    assert total == torch.float32


@needs_triton
def test_float32_beside_matrices_of_bfloat16(run) -> None:
    """As autocast has it on a GPU; the interpreter multiplies them in float32."""
    found, exact = run.call(with_rounded_matrices)
    assert found.dtype == torch.float32 and relative_error(found, exact) <= 1e-6


def with_rounded_matrices() -> tuple[Tensor, Tensor]:
    from c2d_kernels.ops.res_post_norm import reference, triton

    tensors = CASES["post-norm"].tensors(torch.float32)
    x, parts = tensors["x"], [x for key, x in tensors.items() if key.startswith("parts-")]
    weights = [tensors[name] for name in reference.NAMES]
    rounded = [w.bfloat16() if w.dim() == 2 else w for w in weights]
    widths = [part.shape[-1] for part in parts]
    found = triton.run(x, parts, triton.fold(x.dtype, widths, rounded), 1e-5)
    wide = [[x.double() for x in some] for some in ([x], parts, rounded)]
    return found, reference.res_post_norm(wide[0][0], wide[1], wide[2], 1e-5)


CRAMPED = ("res_post_norm", 80, torch.float32)
SPILLED = {("window_layer", 80, torch.float32): 200}  # bytes a thread, in L1


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("operator", OPERATORS)
def test_registers_and_spills(monkeypatch, operator, architecture, dtype) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from c2d_kernels.ops.mlp_branch import triton_kernels as mlp
    from c2d_kernels.ops.res_post_norm import triton_kernels as post
    from c2d_kernels.ops.window_layer import triton_kernels as layer

    x = torch.empty(1, 8, 8, 60)
    constants = {
        **triton_packing.layer_constants(x, torch.empty(1, dtype=dtype)),
        "PRECISION": "tf32x3",
        "BLOCK": 32 if (operator, architecture, dtype) == CRAMPED else 64,
        "HIDDEN": 128,
        "EPS": 1e-5,
        **{"HEAD": 16, "WINDOW": 8, "SHIFT": 4},
        **{"WIDTHS": (60, 60), "ROWS": (64, 64), "STRIDES": (60, 60)},
    }
    wide = ("x", "out", "input_bias", "bias", "vectors", "fc1_bias", "fc2_bias")
    types = {f"{name}_ptr": "*fp32" for name in wide} | {"parts_ptr": ("*fp32", "*fp32")}
    kernels = {
        "window_layer": layer.window_layer,
        "res_post_norm": post.res_post_norm,
        "mlp_branch": mlp.mlp_branch,
    }
    found = usage(kernels[operator], architecture, dtype, constants, 4, types)
    assert found.stack <= SPILLED.get((operator, architecture, dtype), 0)
    assert found.shared <= 64 * 1024
    if (architecture, dtype) == (90, torch.bfloat16):
        assert found.registers <= 168  # three programs a multiprocessor
