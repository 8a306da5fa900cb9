"""The tables of the shared tests, collected from tests/kernels/<operator>/cases.py.

Each operator's module has SMALL, one case of each form the operator has, for gradcheck, opcheck,
compile, autocast and the rest of the properties; AWKWARD, the shapes that break implementations,
each compared with float64 at its own precision; FLOPS of the small cases, by hand; FORMULAS; and,
where it has any, EXPORTS and REFUSALS.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from c2d_kernels.dispatch import Kernel, kernels
from c2d_kernels.operators import operators
from tests.kernels.rows import Case, Export, Formula, Refusal

MODULES = [
    import_module(f"tests.kernels.{path.parent.name}.cases")
    for path in sorted(Path(__file__).parent.glob("*/cases.py"))
]


def _collected(table: str) -> list:
    return [row for module in MODULES for row in getattr(module, table, ())]


SMALL: list[Case] = _collected("SMALL")
AWKWARD: list[Case] = _collected("AWKWARD")
FORMULAS: list[Formula] = _collected("FORMULAS")
EXPORTS: list[Export] = _collected("EXPORTS")
REFUSALS: list[Refusal] = _collected("REFUSALS")
FLOPS: dict[str, int] = {name: count for module in MODULES for name, count in module.FLOPS.items()}
CASES = {case.name: case for case in SMALL + AWKWARD}

# The roads a call can take: the custom op (over the reference), plain ATen, and the kernels that
# run on a CPU, each where the operator has one.
KERNEL_ROUTES = {"native": "cpu", "torch": "torch"}


def roads(cases: list[Case]) -> list:
    """Each case on each road it has, as parameters `case, route`."""
    known = {name: {kernel.backend for kernel in kernels(name)} for name in operators}
    return [
        pytest.param(case, route, id=f"{case.name}-{route}")
        for case in cases
        for route in ("op", "reference", *KERNEL_ROUTES)
        if KERNEL_ROUTES.get(route) in known[case.operator] or route not in KERNEL_ROUTES
    ]


def opaque_kernel(operator: str) -> Kernel:
    """A kernel that runs the reference, so that the public function takes the custom op's road."""
    return Kernel(operator, "cuda", lambda *args: None, operators[operator].reference)
