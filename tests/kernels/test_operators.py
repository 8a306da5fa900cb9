"""Properties of every operator, on each road: the op, plain ATen, the native kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import c2d_kernels
from c2d_kernels import dispatch
from c2d_kernels.operators import operators
from tests.kernels.cases import AWKWARD, CASES, SMALL, roads
from tests.kernels.comparison import relative_error
from tests.kernels.rows import Case, Tensors, in_float64

HALF = (torch.bfloat16, torch.float16)
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
every = pytest.mark.parametrize("case", SMALL + AWKWARD, ids=lambda case: case.name)
small_roads = pytest.mark.parametrize(("case", "route"), roads(SMALL))
every_road = pytest.mark.parametrize(("case", "route"), roads(SMALL + AWKWARD))


def with_gradients(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
    tensors = case.tensors(dtype, seed)
    return {name: x.requires_grad_(name in case.shapes) for name, x in tensors.items()}


def run(case: Case, tensors: Tensors, function=None) -> list[Tensor]:
    """Outputs, then the gradients of a fixed weighted sum of them."""
    outputs = (function or case.outputs)(tensors)
    generator = torch.Generator().manual_seed(99)
    loss = sum(
        (out.double() * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum()
        for out in outputs
    )
    wanted = [x for x in tensors.values() if x.requires_grad]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, wanted)]


@every_road
def test_float64_equals_reference(case: Case, route: str, take) -> None:
    with c2d_kernels.backend("reference"):
        expected = run(case, with_gradients(case))
    with take(case, route):
        actual = run(case, with_gradients(case))
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert torch.isfinite(got).all()
        assert relative_error(got, want) <= 1e-12


@small_roads
def test_gradcheck(case: Case, route: str, take) -> None:
    tensors = with_gradients(case)
    names = [name for name, x in tensors.items() if x.requires_grad]

    def function(*values: Tensor):
        return case.call({**tensors, **dict(zip(names, values, strict=True))})

    with take(case, route):
        assert torch.autograd.gradcheck(
            function, [tensors[name] for name in names], fast_mode=len(names) > 8
        )


@small
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(case: Case, dtype: torch.dtype, take, monkeypatch) -> None:
    recorded = []
    select = dispatch.select
    monkeypatch.setattr(
        dispatch, "select", lambda name, *args: recorded.append(args) or select(name, *args)
    )
    with c2d_kernels.backend("reference"):
        case.call(with_gradients(case, dtype))
    monkeypatch.undo()
    op = getattr(torch.ops.c2d, case.operator).default
    half = dtype in HALF
    # In half precision only the schemas and fakes are of interest; gradients agree as above.
    tests = ("test_schema", "test_faketensor") if half else torch.library._OPCHECK_DEFAULT_UTILS
    torch.library.opcheck(op, recorded[0], test_utils=tests)


@small_roads
def test_compile_fullgraph(case: Case, route: str, take) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    with take(case, route):
        expected = run(case, with_gradients(case))
        compiled = torch.compile(case.outputs, fullgraph=True, backend=counter)
        actual = run(case, with_gradients(case), compiled)
    assert counter.frame_count == 1
    for got, want in zip(actual, expected, strict=True):
        assert relative_error(got, want.double()) <= 1e-13
    nodes = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
    assert any(case.operator in name for name in nodes) == (route != "reference")


@pytest.mark.slow
def test_compile_inductor(take) -> None:
    case = CASES["channel-borders"]
    torch._dynamo.reset()
    with take(case, "op"):
        expected = run(case, with_gradients(case, torch.float32))
        compiled = torch.compile(case.outputs, fullgraph=True)
        actual = run(case, with_gradients(case, torch.float32), compiled)
    for got, want in zip(actual, expected, strict=True):
        assert relative_error(got, want.double()) <= 1e-5


@small
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = case.outputs(tensors)[0]
    if case.composed:
        # Only its products may be rounded: what goes around them stays as it came.
        assert actual.dtype == dtype
        assert relative_error(actual, case.outputs(tensors)[0].double()) <= 0.02
        return
    if dtype == torch.float64:
        expected = case.outputs(tensors)[0]
    else:
        # Features are rounded, the LR image and the parameters are not, nor any sum inside.
        names = set(case.features) - {"image"}
        cast = {name: x.bfloat16() if name in names else x for name, x in tensors.items()}
        expected = case.outputs(cast)[0]
        assert actual.dtype == (torch.float32 if case.result == "image" else torch.bfloat16)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


@small
@pytest.mark.parametrize("dtype", HALF)
def test_half_features_beside_float32_parameters(case: Case, dtype: torch.dtype, take) -> None:
    tensors = with_gradients(case, dtype)
    with take(case, "op"):
        results = run(case, tensors)
    assert results[0].dtype == dtype
    differentiated = [x for x in tensors.values() if x.requires_grad]
    for gradient, x in zip(results[-len(differentiated) :], differentiated, strict=True):
        assert gradient.dtype == x.dtype


@every_road
@pytest.mark.parametrize("layout", ["slice", "transposed"])
def test_strides(case: Case, route: str, layout: str, take) -> None:
    tensors = case.tensors(torch.float32)

    def strided(x: Tensor) -> Tensor:
        if layout == "slice":
            # A part of a wider map, as q and v are of one projection; neighbours are NaN.
            wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), torch.nan, dtype=x.dtype)
            wide[..., 1:-2] = x
            return wide[..., 1:-2]
        return x.transpose(0, -1).contiguous().transpose(0, -1)

    with take(case, route):
        expected = case.outputs(tensors)
        views = {n: strided(x) if n in case.features else x for n, x in tensors.items()}
        actual = case.outputs(views)
    for got, want in zip(actual, expected, strict=True):
        # Not bitwise: a matrix product may take another road for another stride.
        assert relative_error(got, want.double()) <= 2e-6


@small_roads
def test_bitwise_repeat(case: Case, route: str, take) -> None:
    with take(case, route):
        first, second = (run(case, with_gradients(case, torch.float32)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def nudged(tensors: Tensors, case: Case, dtype: torch.dtype, seed: int) -> Tensors:
    """Features moved by one unit in the last place, up or down; seed 0 leaves them as they are."""
    generator = torch.Generator().manual_seed(seed)

    def move(x: Tensor) -> Tensor:
        towards = torch.randn(x.shape, generator=generator).sign() * torch.inf
        return torch.nextafter(x.to(dtype), towards.to(dtype)).to(x.dtype)

    moved = case.features if seed else ()
    return {name: move(x) if name in moved else x for name, x in tensors.items()}


def formula_errors(case: Case, tensors: Tensors, dtype: torch.dtype, monkeypatch) -> list[float]:
    """Error of each output of the formula with every operation in this dtype."""
    exact = in_float64(tensors)
    plain = {name: x.to(dtype) if name in case.shapes else x for name, x in tensors.items()}
    with c2d_kernels.backend("reference"):
        want = case.outputs(exact)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "promote_types", lambda narrow, wide: narrow)
            naive = case.outputs(plain)
    return [relative_error(simple, true) for simple, true in zip(naive, want, strict=True)]


@every_road
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numerics_rule(case: Case, route: str, dtype: torch.dtype, take, monkeypatch) -> None:
    """Error <= 2x that of the same formula with every operation in this dtype, plus one ulp.

    The formula's error on one set of numbers is a matter of luck: what is further off is held
    against the worst of four sets that differ by single ulps.
    """
    # Parameters and data are rounded to dtype too, so that all three see the same numbers.
    tensors = {
        name: x.to(dtype).to(x.dtype) if name in case.shapes else x
        for name, x in case.tensors(dtype).items()
    }
    with c2d_kernels.backend("reference"):
        want = case.outputs(in_float64(tensors))
    with take(case, route):
        actual = case.outputs(tensors)
    found = [relative_error(got, true) for got, true in zip(actual, want, strict=True)]
    worst = [0.0] * len(found)
    for seed in range(4):
        errors = formula_errors(case, nudged(tensors, case, dtype, seed), dtype, monkeypatch)
        worst = [max(pair) for pair in zip(worst, errors, strict=True)]
        allowed = [2 * error + torch.finfo(dtype).eps for error in worst]
        if all(error <= most for error, most in zip(found, allowed, strict=True)):
            return
    pytest.fail(f"errors {found}, allowed {allowed}")


WINDOWED = [case for case in SMALL + AWKWARD if case.windowed]
windowed_roads = pytest.mark.parametrize(("case", "route"), roads(WINDOWED))


@windowed_roads
def test_huge_activations_in_bfloat16(case: Case, route: str, take) -> None:
    """Features near 1e6: squares and cubes of them overflow nothing that is kept in float32.

    Softmax meets scores of 1e12 and chooses one key; correlations are sums of products.
    """

    def huge() -> Tensors:
        tensors = case.tensors(torch.bfloat16)
        tensors = {n: x * 1e6 if n in case.features else x for n, x in tensors.items()}
        return {name: x.requires_grad_(x.is_floating_point()) for name, x in tensors.items()}

    with take(case, route):
        found = run(case, huge())
    exact = in_float64(huge())
    with c2d_kernels.backend("reference"):
        want = case.outputs(exact)[0]
    assert all(torch.isfinite(x).all() for x in found)
    assert relative_error(found[0], want) <= 0.02


@pytest.mark.parametrize("operator", dict.fromkeys(case.operator for case in WINDOWED))
@pytest.mark.parametrize("route", ["op", "native"])
def test_configurations_back_to_back(operator: str, route: str, take) -> None:
    """No call leaves anything behind for the next, of another shape, window, shift or precision."""
    cases = [case for case in WINDOWED if case.operator == operator]
    calls = [(case, dtype) for case in cases for dtype in (torch.float32, torch.float64)]

    def results(calls: list[tuple[Case, torch.dtype]]) -> dict:
        found = {}
        for case, dtype in calls:
            with take(case, route):
                found[case.name, dtype] = run(case, with_gradients(case, dtype))
        return found

    forwards, backwards = results(calls), results(calls[::-1])
    assert len(forwards) >= 8
    for name, first in forwards.items():
        assert all(torch.equal(a, b) for a, b in zip(first, backwards[name], strict=True)), name


@small
def test_double_backward_is_refused(case: Case, take) -> None:
    tensors = with_gradients(case)
    x = tensors[case.features[0]]
    with take(case, "op"):
        loss = sum(out.square().sum() for out in case.outputs(tensors))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(
            c2d_kernels.BackendError, match=f"{case.operator} has no second derivative"
        ):
            first.sum().backward()


@small
def test_double_backward_of_the_reference(case: Case, take) -> None:
    tensors = with_gradients(case)
    x = tensors[case.features[0]]
    with take(case, "reference"):
        loss = sum(out.square().sum() for out in case.outputs(tensors))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.abs().max() > 0


@small
def test_gradient_only_where_asked(case: Case, take) -> None:
    tensors = with_gradients(case)
    name = case.features[0]
    with take(case, "op"):
        expected = torch.autograd.grad(case.outputs(tensors)[0].square().sum(), tensors[name])[0]
        alone = {n: x.detach().requires_grad_(n == name) for n, x in tensors.items()}
        case.outputs(alone)[0].square().sum().backward()
    assert torch.allclose(alone[name].grad, expected, rtol=1e-13, atol=0)
    assert all(x.grad is None for n, x in alone.items() if n != name)


@every
@pytest.mark.parametrize("route", ["op", "reference"])
def test_meta_device(case: Case, route: str, take) -> None:
    """Shapes without data; and a tensor made on the wrong device would not mix with these."""
    tensors = {name: x.to("meta") for name, x in case.tensors().items()}
    tensors = {name: x.requires_grad_(name in case.shapes) for name, x in tensors.items()}
    with take(case, route):
        outputs = case.outputs(tensors)
        expected = case.outputs(case.tensors())
        outputs[0].sum().backward()
    for got, want in zip(outputs, expected, strict=True):
        assert got.device.type == "meta"
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


@small
def test_example_runs(case: Case) -> None:
    """info() asks kernels about the example: it must be a valid call."""
    out = operators[case.operator].reference(*operators[case.operator].example("cpu"))
    assert torch.isfinite(out if isinstance(out, Tensor) else out[0]).all()
