"""Every operator under every tool of operator_tools.py: the reference's result, or a sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import BackendError, dispatch, native
from c2d_kernels.dispatch import Kernel
from c2d_kernels.operators import operators
from tests.composability.operator_tools import TOOLS, OperatorTool
from tests.kernels.cases import SMALL
from tests.kernels.comparison import relative_error
from tests.kernels.rows import Case

ONE_EACH = {case.operator: case for case in reversed(SMALL)}
CASES = [pytest.param(case, id=name) for name, case in sorted(ONE_EACH.items())]


def of_first(case: Case) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The case's call as a function of its first tensor, and that."""
    first, *others = case.tensors()
    tensors = case.tensors()
    fixed = {name: tensors[name] for name in others}
    return lambda x: case.outputs({first: x, **fixed})[0], tensors[first]


def test_the_table_has_every_operator() -> None:
    assert set(ONE_EACH) == set(operators)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tool", [pytest.param(tool, id=tool.name) for tool in TOOLS])
def test_operator(case: Case, tool: OperatorTool) -> None:
    call, x = of_first(case)
    with c2d_kernels.backend("reference"):
        expected = tool.use(call, x)
    assert expected.abs().max() > 0
    try:
        found = tool.use(call, x)
    except BackendError as error:
        refused = str(error)
    else:  # what may be refused works in a layer that is composed of PyTorch's operators
        assert relative_error(found, expected) < 1e-9
        return
    assert tool.refusal
    assert tool.refusal in refused


@pytest.mark.skipif(native.missing is not None, reason="no kernel refuses without the library")
def test_a_second_derivative_is_refused() -> None:
    call, x = of_first(ONE_EACH["channel_correlation"])
    with pytest.raises(BackendError, match="has no second derivative"):
        TOOLS[-1].use(call, x)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in SMALL if not case.composed]
)
def test_a_backend_by_name_says_that_it_cannot_be_transformed(case: Case) -> None:
    call, x = of_first(case)
    with c2d_kernels.backend("triton"), pytest.raises(BackendError, match="its reference only"):
        torch.vmap(call)(torch.stack([x, x]))


Transform = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
TRANSFORMS: dict[str, Transform] = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vmap": lambda f, x: torch.vmap(f)(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_compiled_transforms(transform: Transform) -> None:
    """torch.compile must see the level too. (It has no jvp of a norm or a padding, whoever's.)"""
    x, v = torch.randn(2, 1, 8, 8, 4, dtype=torch.float64).unbind()

    def use(x: Tensor) -> Tensor:
        return transform(lambda x: c2d_kernels.channel_correlation(x, v, window_size=4), x)

    with c2d_kernels.backend("reference"):
        expected = use(x)
    torch._dynamo.reset()
    found = torch.compile(use, fullgraph=True, backend="aot_eager")(x)
    assert relative_error(found, expected) < 1e-9


def test_compiled_code_follows_the_backend() -> None:
    """The context variable cannot be traced: what the compiler reads instead is guarded."""
    call, x = of_first(ONE_EACH["channel_correlation"])
    torch._dynamo.reset()
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append([node for node in graph.graph.nodes if "c2d" in str(node.target)])
        return graph

    compiled = torch.compile(call, fullgraph=True, backend=counted)
    compiled(x)
    with c2d_kernels.backend("reference"):
        compiled(x)
    compiled(x)
    assert [bool(found) for found in graphs] == [native.missing is None, False]


def test_blocks_that_overlap_in_threads_leave_nothing_behind() -> None:
    """Each opens before the other's end, and closes after it."""
    both_open, seen = threading.Barrier(2), {}

    def work(name: str) -> None:
        with c2d_kernels.backend(name):
            both_open.wait(10)
            seen[name] = dispatch.requested()
            both_open.wait(10)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("reference", "torch")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"reference": "reference", "torch": "torch"}
    assert dispatch.requested() == dispatch._newest == "auto"


def test_a_backward_takes_the_backend_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, and when the block has been left."""
    asked = []

    def can_run(*args: object) -> None:
        asked.append(dispatch.requested())

    def backward(grad: Tensor, x: Tensor, *rest: object) -> list[Tensor | None]:
        return [grad.clone(), None]

    kernel = Kernel("channel_correlation", "cuda", can_run, lambda q, v, *_: q + v, backward)
    monkeypatch.setitem(dispatch._kernels, "channel_correlation", [kernel])
    call, x = of_first(ONE_EACH["channel_correlation"])
    x.requires_grad_()
    with c2d_kernels.backend("cuda"):
        out = call(x)
    asked.clear()
    thread = threading.Thread(target=out.sum().backward)
    thread.start()
    thread.join()
    assert asked == ["cuda"]
    assert torch.equal(x.grad, torch.ones_like(x))
