"""The gate before the stopwatch: an output that is not right is refused, never timed.

The yardstick is the numerics rule of the project. The truth is the operator's reference run in
float64 on the very numbers that are timed. Errors are relative to the largest absolute value of
the truth. An implementation may be off by twice the error of the straightforward formula with
every operation in its dtype, plus one ulp; in float64 by 1e-12. The error of an output of a few
numbers is chance (that of a single one may be 0), so the formula's worst output stands for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bench.budget import Budget

# Outputs by name. Each name is judged alone; the tensors under one name are judged together, by
# the worst of them (hundreds of parameter gradients would fail one by one by chance).
Outputs = Mapping[str, tuple[Tensor, ...]]

FLOAT64_BOUND = 1e-12
FEW = 16  # numbers: the worst error of so few says little about a formula
# The rule is this project's promise. A peer that sums in a less careful order still computes the
# same function, and leaving it out would hide a competitor: it may err by this many
# bounds, and the table marks it.
PEER_SLACK = 8


class WrongResult(AssertionError):
    """An implementation gave a wrong output, so there is nothing to time."""


class RoundEveryOperation(TorchDispatchMode):
    """Rounds the float32 result of every ATen operation to a half type's precision.

    The references compute half features in float32. The rule compares with the formula that has
    *every* operation in the half type: this mode makes that formula out of the same code. What
    follows from the `exact` tensors alone (coordinates: never half, by the operators' definition)
    is not rounded. Where a `budget` is given, each operation has to begin within it.
    """

    def __init__(
        self, dtype: torch.dtype, exact: Iterable[Tensor] = (), budget: Budget | None = None
    ) -> None:
        super().__init__()
        self.dtype, self.budget = dtype, budget
        self.exact = {id(tensor): tensor for tensor in exact}  # held, so that no id is reused

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.budget is not None:
            self.budget.need(0, f"the formula in {str(self.dtype).removeprefix('torch.')}")
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if inputs and all(id(tensor) in self.exact for tensor in inputs):
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.exact |= {id(tensor): tensor for tensor in outputs}
            return result
        if func.is_view:
            return result  # a view of numbers that are rounded already
        mutable = func._schema.is_mutable

        def rounded(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float32:
                return tensor
            half = tensor.to(self.dtype)
            return tensor.copy_(half) if mutable else half.to(tensor.dtype)

        return tree_map_only(Tensor, rounded, result)


@dataclass(frozen=True)
class Verdict:
    """How far an accepted output was from the truth, and how far the rule allows it to be."""

    error: float
    bound: float


@dataclass(frozen=True)
class Truth:
    """The float64 outputs of a workload and the error allowed for each of them."""

    outputs: Outputs
    bounds: Mapping[str, float]
    dtype: torch.dtype
    formula_seconds: float = 0.0  # of one run of the straightforward formula

    @classmethod
    def of(
        cls,
        exact: Callable[[], Outputs],
        straightforward: Sequence[Callable[[], Outputs]],
        dtype: torch.dtype,
        never_rounded: Iterable[Tensor] = (),
        budget: Budget | None = None,
    ) -> Truth:
        """Run the reference in float64 and in `dtype`, and derive the bounds by the rule.

        The worst of the `straightforward` runs is the yardstick; `never_rounded` are those of their
        inputs that no half type holds (coordinates).
        Raises WrongResult if the straightforward formula itself keeps less than half of the
        dtype's digits: its error is then no yardstick (twice nonsense would allow anything).
        Raises OverBudget once the `budget` does not hold the next run.
        """
        start = time.perf_counter()
        outputs = exact()
        taken = time.perf_counter() - start
        if dtype == torch.float64:
            return cls(outputs, dict.fromkeys(outputs, FLOAT64_BOUND), dtype)
        half = dtype in (torch.bfloat16, torch.float16)
        errors = dict.fromkeys(outputs, 0.0)
        for run in straightforward:
            if budget is not None and not half:  # half: unlike float64, so it asks as it goes
                budget.need(taken, f"the formula in {str(dtype).removeprefix('torch.')}")
            start = time.perf_counter()
            with RoundEveryOperation(dtype, never_rounded, budget) if half else nullcontext():
                yardstick = run()
            taken = time.perf_counter() - start
            for name, truth in outputs.items():
                error = worst_error(name, yardstick.get(name, ()), truth)
                errors[name] = max(errors[name], error)
        ulp = torch.finfo(dtype).eps
        for name, error in errors.items():
            if not error <= ulp**0.5:
                raise WrongResult(
                    f"The straightforward formula in {dtype} gives {name} with a relative error "
                    f"of {error:.1e}: no yardstick for others, choose better conditioned inputs."
                )
        worst = max(errors.values())
        few = {name for name, truth in outputs.items() if sum(t.numel() for t in truth) < FEW}
        bounds = {
            name: 2 * (worst if name in few else error) + ulp for name, error in errors.items()
        }
        return cls(outputs, bounds, dtype, taken)

    def check(self, outputs: Outputs, who: str, slack: float = 1) -> Verdict:
        """Accept `outputs` of the implementation named `who`, or raise WrongResult.

        `slack` widens every bound. Returns the verdict on the output nearest to its bound.
        """
        if set(outputs) != set(self.outputs):
            raise WrongResult(
                f"{who} returned {sorted(outputs)} where {sorted(self.outputs)} were expected."
            )
        verdicts = []
        for name, truth in self.outputs.items():
            error, bound = worst_error(name, outputs[name], truth), self.bounds[name]
            if not error <= slack * bound:  # in this form a NaN is refused as well
                raise WrongResult(
                    f"{who} is refused and not timed: {name} differs from the float64 reference "
                    f"by {error:.2e} of its largest value where {slack * bound:.2e} is allowed "
                    f"in {self.dtype}."
                )
            verdicts.append(Verdict(error, bound))
        return max(verdicts, key=lambda verdict: verdict.error / verdict.bound)


def worst_error(name: str, outputs: tuple[Tensor, ...], truths: tuple[Tensor, ...]) -> float:
    """The largest of max|output - truth| / max|truth| over the pairs; inf where not finite."""
    if len(outputs) != len(truths):
        raise WrongResult(f"{name}: got {len(outputs)} tensors where {len(truths)} were expected.")
    largest = [float(truth.abs().max()) if truth.numel() else 0.0 for truth in truths]
    # A tensor whose truth is nearly nothing beside its fellows is measured on their scale: what is
    # left of a sum whose terms cancel has the error of the terms.
    floor = 1e-3 * max(largest, default=0.0)
    worst = 0.0
    for output, truth, scale in zip(outputs, truths, largest, strict=True):
        if output.shape != truth.shape:
            raise WrongResult(
                f"{name}: got shape {tuple(output.shape)} where {tuple(truth.shape)} was expected."
            )
        if not bool(torch.isfinite(output).all()):
            return float("inf")
        if output.numel():
            difference = float((output.double() - truth).abs().max())
            if difference:
                scale = max(scale, floor)
                worst = max(worst, difference / scale if scale else float("inf"))
    return worst
