"""The rows of the shared tests' tables, which each operator's cases.py is written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.export import Dim

import c2d_kernels

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A call: one operator called with one set of shapes.

    shapes: the tensor arguments; names are the public function's. options: the rest of its
    arguments. features: which tensors have the precision under test (the others may stay float32
    beside half precision). fixed: tensors that are data, with values of their own and no gradient.
    prepare: changes drawn values (for example, makes A negative). result: which tensor's dtype the
    result has.

    composed: a layer in one piece, which elsewhere is composed of other operators, whose products
    alone autocast rounds. windowed: of products in windows alone, for features of any size.
    bfloat16_products: its native kernel multiplies bfloat16 where the CPU does.
    """

    name: str
    operator: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, object]
    features: tuple[str, ...]
    fixed: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors
    result: str = ""
    composed: bool = False
    windowed: bool = False
    bfloat16_products: bool = False

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
        """Seeded inputs: features in dtype, parameters in dtype or float32 if that is half."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        drawn = self.prepare(drawn)
        wide = torch.promote_types(dtype, torch.float32)
        cast = {name: x.to(dtype if name in self.features else wide) for name, x in drawn.items()}
        return {**cast, **{name: make() for name, make in self.fixed.items()}}

    def call(self, tensors: Tensors) -> Tensor | tuple[Tensor, ...]:
        """The public function on these tensors."""
        arguments = dict(tensors)
        for listed in ("parts", "encoding"):
            values = [arguments.pop(name) for name in tensors if name.startswith(listed + "-")]
            if values:
                arguments[listed] = values
        weights = {name: arguments.pop(name) for name in list(arguments) if "." in name}
        if weights:
            arguments["weights"] = weights
        return getattr(c2d_kernels, self.operator)(**arguments, **self.options)

    def outputs(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """The call's results, always as a tuple."""
        out = self.call(tensors)
        return out if isinstance(out, tuple) else (out,)


def in_float64(tensors: Tensors) -> Tensors:
    """The same numbers; whole ones stay as they are."""
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}


def weights_of(modules: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of modules' weights and biases."""
    both = {f"{module}.weight": shape for module, shape in modules.items()}
    return both | {f"{module}.bias": shape[:1] for module, shape in modules.items()}


def matrices_that_keep_variance(drawn: Tensors) -> Tensors:
    """The draw, each matrix of a module scaled to its number of inputs."""
    return {
        name: x / x[0].numel() ** 0.5 if x.dim() > 1 and "." in name else x
        for name, x in drawn.items()
    }


@dataclass(frozen=True)
class Formula:
    """A number that an operator's FLOP formula gives, the same by hand, and what that counts."""

    value: int
    by_hand: int
    what: str


# The sizes that change; maps of windows are derived dimensions, whole windows: rows, columns.
B, H, W = Dim("B", min=1, max=64), Dim("H", min=5, max=512), Dim("W", min=5, max=512)
L, Q = Dim("L", min=1, max=4096), Dim("Q", min=1, max=4096)
rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)


@dataclass(frozen=True)
class Export:
    """Which case is exported, from and at which sizes, and on which roads."""

    case: str
    dynamic: dict[str, dict[int, object]]  # tensor -> dimension -> its symbol
    traced: dict[object, int]  # symbol -> its size in the example
    run: dict[object, int]  # symbol -> another size, at which the exported program must run
    routes: tuple[str, ...] = ("op", "reference")


@dataclass(frozen=True)
class Refusal:
    """A call that must be refused: a case with some arguments changed."""

    case: Case
    change: dict[str, object]  # argument -> value, or function of the value it had
    error: type[Exception]
    sentence: str

    @property
    def id(self) -> str:
        return f"{self.case.operator}-{self.sentence[:40]}"


def refusals(case: Case, *table: tuple[dict[str, object], type[Exception], str]) -> list[Refusal]:
    """Several of one case: the change, the error, how its sentence begins."""
    return [Refusal(case, *row) for row in table]


def grow(axis: int, by: int = 1) -> Callable[[Tensor], Tensor]:
    """A change: longer along an axis."""

    def changed(x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[axis] += by
        return x.new_zeros(shape)

    return changed


def to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A change: of another dtype."""
    return lambda x: x.to(dtype)


def empty(axis: int) -> Callable[[Tensor], Tensor]:
    """A change: nothing along an axis."""
    return lambda x: x.narrow(axis, 0, 0)


def flat(x: Tensor) -> Tensor:
    """A change: a dimension less."""
    """A change: a dimension less."""
    return x.flatten(0, 1)
