"""A workload: one piece of work, on fixed numbers, that every contender does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import machine
from bench.correctness import Outputs, WrongResult
from c2d_kernels.operators import counted_as_defined

SEED = 2503
Size = Literal["quick", "full"]
Function = Callable[[dict[str, Tensor]], Tensor]  # named tensors in, one tensor out


@dataclass
class Job:
    """A workload made ready: a function, its tensors, and what gradients are taken of."""

    function: Function
    tensors: dict[str, Tensor]
    leaves: dict[str, Tensor]  # empty: a forward pass without gradients
    half: torch.dtype  # the workload's dtype, whose precision the cotangent has
    random: bool = False  # the function draws random numbers: seed them before each run
    cotangent: Tensor | None = None  # made at the first run, which is never timed

    def run(self) -> Outputs:
        """Do the work once; this is what the stopwatch sees."""
        if self.random:
            torch.manual_seed(SEED)
        if not self.leaves:
            with torch.no_grad():
                return {"output": (self.function(self.tensors),)}
        output = self.function(self.tensors)
        if self.cotangent is None:
            self.cotangent = self._cotangent(output)
        gradients = torch.autograd.grad(output, list(self.leaves.values()), self.cotangent)
        outputs = {"output": (output.detach(),)}
        for name, gradient in zip(self.leaves, gradients, strict=True):
            # Parameters (their names have dots) are judged together: see Outputs.
            group = "gradients of parameters" if "." in name else f"gradient of {name}"
            outputs[group] = (*outputs.get(group, ()), gradient)
        return outputs

    def _cotangent(self, output: Tensor) -> Tensor:
        """The same random gradient of the output for every contender; 1 for a loss."""
        if not output.dim():
            return torch.ones_like(output)
        generator = torch.Generator().manual_seed(SEED + 1)
        value = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        return value.to(self.half).to(output)

    @contextmanager
    def inputs_unchanged(self, who: str) -> Iterator[None]:
        """Raise if the tensors were written to: later runs would work on other numbers."""
        versions = {name: tensor._version for name, tensor in (self.tensors | self.leaves).items()}
        copies = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        yield
        for name, tensor in (self.tensors | self.leaves).items():
            same = name not in copies or torch.equal(tensor.detach(), copies[name])
            if tensor._version != versions[name] or not same:
                raise WrongResult(f"{who} wrote to its input {name}; copy it before changing it.")


@dataclass(frozen=True)
class Workload:
    """One row group of the table: an operator (or network), a shape, a dtype, a direction.

    `tensors` makes the float64 numbers from a seeded generator. Those named in `half` take the
    workload's dtype; all others (tables, weights) stay float32 beside half features.
    """

    subject: str
    shape: str
    size: Size
    tensors: Callable[[torch.Generator], dict[str, Tensor]]
    function: Function | None = None  # a network's workload makes its own
    half: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()  # tensors without a gradient, e.g. coordinates
    dtype: torch.dtype = torch.float32
    backward: bool = False
    traffic: int = 0  # bytes that a float32 forward moves at least; 0: its tensors, each once
    # what a peer needs to know of the shape: name -> (tensors, backward) -> function
    peers: Mapping[str, Callable[[dict[str, Tensor], bool], Function]] = field(default_factory=dict)

    @property
    def direction(self) -> str:
        return "forward+backward" if self.backward else "forward"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def label(self) -> str:
        """The id in a test's name."""
        return f"{self.shape}-{self.dtype_name}-{self.direction}".replace(" ", "_")

    @property
    def never_half(self) -> frozenset[str]:
        """Constants that stay float32 beside half features: coordinates."""
        return self.constants - self.half

    def yardsticks(self) -> list[Job]:
        """Runs of the straightforward formula, whose worst error sets what others are allowed."""
        return [self.job()]

    def job(
        self,
        build: Callable[[Workload, dict[str, Tensor]], Function] | None = None,
        exact: bool = False,
    ) -> Job:
        """Make the work ready: the same numbers at each call.

        `build` gives another implementation; it may prepare what depends on shapes alone. `exact`
        is float64 arithmetic on the numbers as the workload's dtype rounds them.
        """
        generator = torch.Generator().manual_seed(SEED)
        tensors = {}
        for name, tensor in self.tensors(generator).items():
            tensors[name] = self._as_timed(name, tensor, exact).to(machine.device())
        leaves = {}
        if self.backward:
            kept = (name for name in tensors if name not in self.constants)
            leaves = {name: tensors[name].requires_grad_() for name in kept}
        function = build(self, tensors) if build else self.function
        return Job(function, tensors, leaves, self.dtype)

    def flops(self) -> int:
        """Operations of the definition, by the operators' formulas; a backward counts twice."""
        tensors = {name: tensor.to("meta") for name, tensor in self.job().tensors.items()}
        with FlopCounterMode(display=False) as counter, torch.no_grad(), counted_as_defined():
            self.function(tensors)
        return counter.get_total_flops() * (3 if self.backward else 1)

    def least_traffic(self, outputs: Outputs) -> int | None:
        """Bytes that a forward must move: every tensor read once, the output written once."""
        if self.backward:
            return None
        if self.traffic:
            return self.traffic * self.dtype.itemsize // 4
        inputs = sum(x.nbytes for x in self.job().tensors.values())
        return inputs + sum(x.numel() for x in outputs["output"]) * self.dtype.itemsize

    def _as_timed(self, name: str, tensor: Tensor, exact: bool) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        beside = torch.promote_types(self.dtype, torch.float32)
        tensor = tensor.to(self.dtype if name in self.half else beside)
        return tensor.double() if exact else tensor


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Normally distributed float64 numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def in_one_row_on_a_cpu() -> dict[str, tuple]:
    """Arguments of `table` for shapes that take minutes on a CPU: float32, forward only, there."""
    if machine.device().type == "cuda":
        return {}
    return {"dtypes": (torch.float32,), "directions": ("forward",)}


def table(
    subject: str,
    shapes: Mapping[Size, Mapping[str, dict[str, object]]],
    make: Callable[..., dict[str, object]],
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    directions: tuple[str, ...] = ("forward", "forward+backward"),
) -> list[Workload]:
    """All workloads of an operator: shapes x dtypes x directions.

    `shapes[size][label]` are keyword arguments for `make`, which returns the remaining fields of
    the Workload (function, tensors, half, ...).
    """
    return [
        Workload(
            subject, label, size, dtype=dtype, backward="backward" in direction, **make(**arguments)
        )
        for size, labelled in shapes.items()
        for label, arguments in labelled.items()
        for dtype in dtypes
        for direction in directions
    ]
