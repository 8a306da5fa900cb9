"""Who races: the reference, every kernel that is registered, and the peers that people use.

A contender that cannot run here is not left out silently: `absent` gives the reason as a sentence,
the test is skipped with it and the summary lists it.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import c2d_kernels
from bench import machine
from bench.workloads import Function, Workload
from c2d_kernels import dispatch

Build = Callable[[Workload, dict[str, Tensor]], Function]


def the_function_itself(workload: Workload, tensors: dict[str, Tensor]) -> Function:
    """The public function: the backend in force decides what runs."""
    return workload.function


def never(workload: Workload) -> str | None:
    """A contender that runs everywhere."""
    return None


@dataclass(frozen=True)
class Contender:
    """An implementation in the race.

    `backend` is the dispatch in force while it runs, `build` makes its function for a workload,
    `absent` says why it cannot run (None: it can), `full_only` keeps it out of quick runs.
    `ours` is False for peers: they are held to a wider bound, and their failures are named in the
    table without turning the run red.
    """

    name: str
    backend: str = "reference"
    build: Build = the_function_itself
    absent: Callable[[Workload], str | None] = never
    full_only: bool = False
    ours: bool = True


def compiled(workload: Workload, tensors: dict[str, Tensor]) -> Function:
    """The reference through torch.compile, specialised to the shape: the compiler's best case."""
    torch._dynamo.reset()
    return torch.compile(workload.function, fullgraph=True, dynamic=False)


def no_compiler(workload: Workload) -> str | None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "torch.compile needs a C++ compiler on a CPU, and none was found"
    return None


def kept_out_of_compilation(workload: Workload) -> str | None:
    """Compiling takes up to a minute per row: half types are left to our kernels' rows."""
    if workload.dtype != torch.float32:
        return "torch.compile runs in float32 rows only, to keep the full run short"
    if workload.backward and machine.device().type == "cpu":
        return "on a CPU torch.compile runs operators forward only, to keep the full run short"
    return no_compiler(workload)


def tuned(workload: Workload, tensors: dict[str, Tensor]) -> Function:
    """torch.compile that times its kernels' variants first."""
    torch._dynamo.reset()
    return torch.compile(
        workload.function, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
    )


def kept_to_gpus(workload: Workload) -> str | None:
    if machine.device().type != "cuda":
        return "max-autotune chooses among GPU kernels; it runs with --device cuda only"
    return kept_out_of_compilation(workload)


REFERENCE = Contender("reference")
AUTO = Contender("auto", backend="auto")
COMPILED = Contender(
    "torch.compile", build=compiled, absent=kept_out_of_compilation, full_only=True, ours=False
)

TUNED = Contender("max-autotune", build=tuned, absent=kept_to_gpus, full_only=True, ours=False)
COMPILERS = (COMPILED, TUNED)


def kernels_of(operator: str) -> list[Contender]:
    """One contender for each kernel registered for `operator`, in dispatch order."""

    def contender(kernel: dispatch.Kernel) -> Contender:
        refused = refused_by_dispatch(kernel.backend)

        def absent(workload: Workload) -> str | None:
            if workload.backward and kernel.backward is None:
                return "this kernel has no backward: auto takes the reference for gradients"
            return refused(workload)

        return Contender(kernel.backend, kernel.backend, absent=absent)

    return [contender(kernel) for kernel in dispatch.kernels(operator)]


def refused_by_dispatch(backend: str) -> Callable[[Workload], str | None]:
    """The sentence with which dispatch refuses the workload (library not built, dtype, ...)."""

    def reason(workload: Workload) -> str | None:
        job = workload.job()
        try:
            with torch.no_grad(), dispatch.backend(backend):
                job.function(job.tensors)
        except c2d_kernels.BackendError as error:
            return str(error)
        return None

    return reason


def without_package(name: str) -> Callable[[Workload], str | None]:
    """The reason while a package that a peer needs is not installed."""

    def reason(workload: Workload) -> str | None:
        return None if importlib.util.find_spec(name) else f"{name} is not installed"

    return reason


def unless(contender: Contender, reason: Callable[[Workload], str | None]) -> Contender:
    """The contender, absent for one more reason."""
    return replace(contender, absent=lambda work: contender.absent(work) or reason(work))


def peer(
    name: str, build: Build | None = None, absent: Callable[[Workload], str | None] = never
) -> Contender:
    """Somebody else's way to the same result.

    `build` makes it, and may prepare what depends on shapes alone; by default the workload's own
    `peers` do.
    """

    def its_own(workload: Workload, tensors: dict[str, Tensor]) -> Function:
        return workload.peers[name](tensors, workload.backward)

    return Contender(name, build=build or its_own, absent=absent, ours=False)
