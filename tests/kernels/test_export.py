"""torch.export with dynamic batch, height, width, length and queries; then run at other sizes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

import c2d_kernels
from tests.kernels.cases import AWKWARD, SMALL, Case

B, H, W = Dim("B", min=1, max=64), Dim("H", min=5, max=512), Dim("W", min=5, max=512)
L, Q = Dim("L", min=1, max=4096), Dim("Q", min=1, max=4096)
rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)
CASES = {case.name: case for case in SMALL + AWKWARD}


@dataclass(frozen=True)
class Export:
    """Which case is exported, from and at which sizes, and on which roads."""

    case: str
    dynamic: dict[str, dict[int, object]]  # tensor -> dimension -> its symbol
    traced: dict[object, int]  # symbol -> its size in the example
    run: dict[object, int]  # symbol -> another size, at which the exported program must run
    routes: tuple[str, ...] = ("op", "reference")


# Windows of 4 (2 for attention, 4x2 for the spatial one): maps are derived dimensions, whole
# windows. With one window along an axis, the reference in plain ATen would be traced into another
# program; the op would not, but shares the row.
LENGTHS = {0: B, 2: L}
MAP = {0: B, 1: 4 * rows, 2: 4 * columns}
EXPORTS = [
    Export(
        "scan",
        {"u": LENGTHS, "delta": LENGTHS, "z": LENGTHS, "B": LENGTHS, "C": LENGTHS},
        {B: 2, L: 6},
        {B: 3, L: 11},
        routes=("op", "auto"),  # the reference's loop is unrolled: its length is fixed
    ),
    Export(
        "attention",
        {"qkv": {0: B, 1: 2 * rows, 2: 2 * columns}},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
    Export(
        "permuted",
        {"q": MAP, "kv": MAP},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
    Export(
        "channel",
        {"q": {0: B, 1: H, 2: W}, "v": {0: B, 1: H, 2: W}},
        {B: 2, H: 9, W: 7},
        {B: 1, H: 6, W: 20},
    ),
    Export(
        "spatial",
        {"q": {**MAP, 2: 2 * columns}, "v": {**MAP, 2: 2 * columns}},
        {B: 2, rows: 3, columns: 2},
        {B: 1, rows: 2, columns: 5},
    ),
    Export(
        "query-coords",
        {
            "features": {0: B, 1: H, 2: W},
            "image": {0: B, 1: H, 2: W},
            "coords": {0: B, 1: Q},
            "cell": {0: B},
        },
        {B: 2, H: 5, W: 6, Q: 9},
        {B: 3, H: 8, W: 7, Q: 21},
    ),
    Export(
        "query-grid",
        {"features": {0: B, 1: H, 2: W}, "image": {0: B, 1: H, 2: W}},
        {B: 2, H: 5, W: 6},
        {B: 3, H: 8, W: 7},
    ),
]


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
