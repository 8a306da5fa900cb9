"""One file per operator of `c2d_kernels`: the reference, our kernels and the peers, in turns."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from bench.workloads import Workload


def races() -> dict[str, list[Workload]]:
    """The workloads of each operator, from the benchmarks in this folder."""
    found: dict[str, list[Workload]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(import_module(module.name)).values():
            for mark in getattr(value, "pytestmark", ()):
                if mark.name == "race":
                    for workload in mark.kwargs["workloads"]:
                        found.setdefault(workload.subject, []).append(workload)
    return found
