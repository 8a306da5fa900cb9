"""The coordinate query in Triton: in the interpreter, as ptxas sees it, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import coordinate_query_weight_shapes
from c2d_kernels.ops.coordinate_query import triton as launch
from c2d_kernels.ops.coordinate_query.triton_decoder import launch_constants
from c2d_kernels.triton_support import types
from tests.kernels.coordinate_query import test_coordinate_query as queries
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

HIIF_L = (64, 3, 4, 1)  # width, levels, heads, attentions
HIIF = (256, 6, 16, 2)
CASES = {  # (B, H, W), output size or number of coordinates, (width, levels, heads, attentions)
    "x2": ((1, 6, 6), (12, 12), (16, 3, 4, 1)),
    "x2.7": ((2, 3, 4), (8, 11), (20, 3, 4, 1)),
    "x4": ((1, 3, 4), (12, 16), (16, 3, 4, 1)),
    "down": ((1, 7, 5), (3, 4), (8, 2, 2, 1)),
    "coords-borders": ((2, 7, 9), 40, HIIF_L),
    "two-attentions": ((2, 3, 4), 40, (12, 3, 3, 2)),
    "no-attention": ((1, 3, 2), 9, (5, 2, 1, 0)),
    "one-pixel-one-level": ((2, 1, 1), 1, (3, 1, 1, 0)),
}
WIDE = ((1, 3, 4), 20, (72, 2, 3, 1))  # more than one chunk of hidden channels
LARGE = {
    "hiif-l-x4": ((1, 90, 160), (360, 640), HIIF_L),
    "hiif-l-training": ((4, 48, 48), 2304, HIIF_L),
}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with interpreter() as run:
        yield run


def draw(
    shape: tuple[int, ...],
    where: tuple[int, int] | int,
    decoder: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Features, image and weights, and the other arguments; coordinates begin with the corners."""
    generator = torch.Generator().manual_seed(0)
    width, *numbers = decoder
    options: dict[str, object] = dict(zip(("levels", "heads", "attentions"), numbers, strict=True))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {"features": normal(*shape, width), "image": normal(*shape, 3)}
    for name, of in coordinate_query_weight_shapes(width, **options).items():
        gain = name.endswith("norm.weight")
        tensors[name] = 1 + 0.2 * normal(*of) if gain else normal(*of) / of[-1] ** 0.5
    if isinstance(where, tuple):
        options["size"] = where
    else:
        coords = torch.rand(shape[0], where, 2, generator=generator) * 2 - 1
        corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]])[:where]
        coords[:, : len(corners)] = corners
        options["coords"] = coords
        options["cell"] = torch.rand(shape[0], 2, generator=generator) * 0.2 + 0.1
    return {name: x.to(dtype) for name, x in tensors.items()}, options


NAMED = {"bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES = [torch.float64, torch.float32, torch.float16]


# Of gradients, for two reasons. A bias's is a sum over all queries, which torch takes in blocks, to
# an ulp or two if its errors cancel; the kernel's summands err no more than the formula's, but not
# alike: in float32 the sums have been seen at up to 2.1 times what the rule allows. In float16 the
# folded matrices are rounded once for all queries, so that what they err does not cancel in a sum:
# up to 1.7 times.
ULPS = {torch.float32: 8, torch.float16: 3, torch.bfloat16: 3}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_numerics_rule(run, monkeypatch, case, dtype) -> None:
    tensors, options = draw(*case, dtype=dtype)
    actual = run("coordinate_query", tensors, options)
    ulps = ULPS.get(dtype, 1)
    assert_by_the_rule(
        "coordinate_query", actual, tensors, options, dtype, monkeypatch, gradient_ulps=ulps
    )


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_wide_decoder(run, monkeypatch, dtype) -> None:
    tensors, options = draw(*WIDE, dtype=dtype)
    actual = run("coordinate_query", tensors, options)
    assert_by_the_rule("coordinate_query", actual, tensors, options, dtype, monkeypatch)


@needs_triton
def test_float32_image_and_weights_beside_half_features(run) -> None:
    tensors, options = draw(*CASES["no-attention"], dtype=torch.float32)
    tensors["features"] = tensors["features"].half()
    actual = run("coordinate_query", tensors, options)
    expected = by_reference("coordinate_query", tensors, options)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        assert relative_error(got, want.double()) <= 2e-2


@needs_triton
def test_constant_features_do_not_cancel(run, monkeypatch) -> None:
    """Features far from zero with little variance, and some with none."""
    tensors, options = draw(*CASES["coords-borders"], dtype=torch.float32)
    tensors["features"] = 300 + 0.01 * tensors["features"]
    tensors["features"][:, :2] = 0
    actual = run("coordinate_query", tensors, options)
    assert_by_the_rule("coordinate_query", actual, tensors, options, torch.float32, monkeypatch)


@needs_triton
def test_strided_features(run) -> None:
    """A crop of a channels-first map, between calls of another decoder: neither disturbs it."""
    tensors, options = draw((1, 5, 8), 30, (8, 3, 2, 1))
    other = draw(*CASES["down"])
    run("coordinate_query", *other)
    whole = torch.zeros(1, 10, 7, 9, dtype=torch.float64)
    crop = whole[:, 1:9, 2:, 1:].movedim(1, -1)
    tensors["features"] = crop.copy_(tensors["features"])
    assert tensors["features"].stride(-1) != 1
    expected = by_reference("coordinate_query", tensors, options)
    for _ in range(2):
        actual = run("coordinate_query", tensors, options)
        for got, want in zip(actual, expected, strict=True):
            assert relative_error(got, want) <= 1e-12
        run("coordinate_query", *other)


@needs_triton
@pytest.mark.parametrize("where", [(5, 6), 7], ids=["size", "coords"])
def test_no_images(run, where) -> None:
    tensors, options = draw((0, 3, 4), where, (8, 2, 2, 1))
    out, *gradients = run("coordinate_query", tensors, options)
    assert out.shape == (0, *([where] if isinstance(where, int) else where), 3)
    for x, gradient in zip(tensors.values(), gradients, strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


@needs_triton
def test_repeats_bitwise(run) -> None:
    tensors, options = draw((2, 3, 2), 70, (16, 3, 4, 1), torch.float32)
    first, second = (run("coordinate_query", tensors, options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_triton
def test_tiles_equal_the_whole(run) -> None:
    run.call(check_tiles)


def check_tiles() -> None:
    with c2d_kernels.backend("triton"):
        queries.check_tiles([(0, 7), (7, 19)], attentions=1)


REFUSALS = {
    "width": (torch.float16, 257, 3, "it decodes at most 256 channels in 16 levels"),
    "levels": (torch.float16, 64, 17, "it decodes at most 256 channels in 16 levels"),
    "float32": (
        torch.float32,
        256,
        6,
        "it decodes at most 64 channels in float32, and these are 256",
    ),
}


@pytest.mark.parametrize(("dtype", "width", "levels", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(dtype, width, levels, reason) -> None:
    assert launch.can_run(torch.empty(1, 1, 1, width, dtype=dtype), None, None, levels) == reason


# dtype -> registers a thread of HIIF-L's kernels measured with triton 3.9 on sm_90. None spills.
USAGE = {
    "bf16": {
        "moments": 100,
        "decode": 167,
        "keep_states": 128,
        "mlp": 148,
        "mlp-attention": 144,
        "attention": 116,
        "first_mlp": 172,
        "sum_by_pixel": 56,
    },
    "fp32": {
        "moments": 168,
        "decode": 105,
        "keep_states": 104,
        "mlp": 246,
        "mlp-attention": 227,
        "attention": 255,
        "first_mlp": 138,
        "sum_by_pixel": 72,
    },
}
CONSTANTS = {
    "moments": {"STOP": 0},
    "mlp": {"LEVEL": 1, "ATTENTION": False},
    "mlp-attention": {"LEVEL": 0, "ATTENTION": True},
    "attention": {"INDEX": 0},
    "sum_by_pixel": {"PLACES": 32, "num_warps": 4},
}
WIDE_POINTERS = (
    *("stats", "y_t", "x_t", "rel", "vectors", "offsets", "norms", "partial", "dmoment"),
    *("dy", "dx", "du", "terms", "shares", "rows", "dstats"),
)
TYPES = {
    **{f"{name}_ptr": "*fp32" for name in WIDE_POINTERS},
    **{f"{name}_places_ptr": "*i32" for name in "yx"},
    **{f"{name}_ptr": "*i64" for name in ("order", "starts")},
}
COMPILED = [
    pytest.param(architecture, name, kernel, id=f"sm_{architecture}-{name}-{kernel}")
    for architecture in (80, 90)
    for name, kernels in USAGE.items()
    for kernel in kernels
]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "name", "kernel"), COMPILED)
def test_registers_and_spills(monkeypatch, architecture, name, kernel) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from c2d_kernels.ops.coordinate_query import triton_backward_kernels, triton_kernels

    forward, dtype = kernel in ("moments", "decode"), NAMED[name]
    width, levels, heads, attentions = HIIF_L
    constants = {
        "LEVELS": levels,
        "ATTENTIONS": attentions,
        "CHANNELS": width,
        "DEPTH": width,
        "GRID": False,
        "HEADS": heads,
        "HEAD": width // heads,
        "HEAD_DIM": width // heads,
        **types(dtype),
        **launch_constants(width, dtype, backward=not forward),
        **CONSTANTS.get(kernel, {}),
    }
    module = triton_kernels if forward else triton_backward_kernels
    compiled = getattr(module, kernel.removesuffix("-attention"))
    found = usage(compiled, architecture, dtype, constants, constants["num_warps"], TYPES)
    assert found.stack == 0
    assert found.shared <= 32 * 1024
    if architecture == 90:
        assert found.registers <= 1.1 * USAGE[name][kernel]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)
@pytest.mark.parametrize("case", (CASES | LARGE).values(), ids=(CASES | LARGE).keys())
@on_gpu
def test_on_a_gpu(monkeypatch, case, dtype) -> None:
    tensors, options = draw(*case, dtype=dtype)
    tensors = {name: x.cuda() for name, x in tensors.items()}
    options = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in options.items()}
    actual = twice("coordinate_query", tensors, options)
    ulps = ULPS.get(dtype, 1)
    assert_by_the_rule(
        "coordinate_query", actual, tensors, options, dtype, monkeypatch, gradient_ulps=ulps
    )
