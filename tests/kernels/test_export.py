"""torch.export with dynamic batch, height, width, length and queries; then run at other sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import export

import c2d_kernels
from tests.kernels.cases import CASES, EXPORTS
from tests.kernels.rows import Case, Export


class Call(torch.nn.Module):
    """The public function as a module, its tensors by name."""

    def __init__(self, case: Case, names: tuple[str, ...]) -> None:
        super().__init__()
        self.case, self.names = case, names

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.case.call(dict(zip(self.names, values, strict=True)))


def sized(row: Export, sizes: dict[object, int]) -> dict[str, Tensor]:
    """The case's tensors with their dynamic dimensions at these sizes."""
    generator = torch.Generator().manual_seed(5)
    by_name = {symbol.__name__: size for symbol, size in sizes.items()}
    tensors = CASES[row.case].tensors(torch.float32)
    for name, dimensions in row.dynamic.items():
        shape = list(tensors[name].shape)
        for axis, symbol in dimensions.items():
            root = getattr(symbol, "root", symbol)
            factor = symbol.fn(1) if hasattr(symbol, "fn") else 1
            shape[axis] = by_name[root.__name__] * factor
        tensors[name] = torch.rand(shape, generator=generator, dtype=tensors[name].dtype) - 0.5
    return tensors


PARAMETERS = [
    pytest.param(row, route, id=f"{row.case}-{route}") for row in EXPORTS for route in row.routes
]


@pytest.mark.parametrize(("row", "route"), PARAMETERS)
def test_export_with_dynamic_sizes(row: Export, route: str, take) -> None:
    case, example = CASES[row.case], sized(row, row.traced)
    dynamic = tuple(row.dynamic.get(name) for name in example)
    with take(case, route):
        program = export(
            Call(case, tuple(example)), tuple(example.values()), dynamic_shapes=(dynamic,)
        )
    nodes = [str(node.target) for node in program.graph.nodes]
    assert any(f"c2d.{case.operator}" in node for node in nodes) == (route != "reference")
    other = sized(row, row.run)
    with c2d_kernels.backend("reference"):
        expected = case.outputs(other)
    actual = program.module()(*other.values())
    actual = actual if isinstance(actual, tuple) else (actual,)
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)
