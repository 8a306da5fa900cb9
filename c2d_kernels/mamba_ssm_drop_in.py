"""`install_as_mamba_ssm`: code that was written for mamba_ssm runs on `selective_scan`."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch import Tensor

from .dispatch import BackendError, backend
from .ops.selective_scan.op import selective_scan

_NAMES = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
_OFFERED = ("selective_scan_fn", "selective_scan_ref")


def install_as_mamba_ssm(*, force: bool = False) -> None:
    """Make `mamba_ssm.ops.selective_scan_interface` importable, backed by this package.

    It offers selective_scan_fn (this package's selective_scan) and selective_scan_ref (its
    reference), with mamba_ssm's arguments, on CPU and GPU: networks that import them, such as
    MambaIR's, run as they are. Import the network after the call. Calling again changes nothing.

    Args:
        force: take the place of an installed mamba_ssm in this process.

    Raises:
        BackendError: mamba_ssm itself is installed, or imported, and `force` is not given.
    """
    present = sys.modules.get("mamba_ssm")
    if getattr(present, "__c2d_kernels__", False):
        return
    if not force and (present is not None or importlib.util.find_spec("mamba_ssm") is not None):
        raise BackendError(
            "mamba_ssm itself is installed here: uninstall it, or call "
            "install_as_mamba_ssm(force=True) to take its place in this process."
        )
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    modules = {name: _module(name) for name in _NAMES}
    interface = modules[_NAMES[-1]]
    vars(interface).update(selective_scan_fn=selective_scan, selective_scan_ref=selective_scan_ref)
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
        sys.modules[name] = module


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan` by its reference, a loop over the sequence: slow, and the specification."""
    with backend("reference"):
        return selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
        )


def _module(name: str) -> ModuleType:
    """An empty module that explains what it does not have."""
    module = ModuleType(name, "Part of mamba_ssm's interface, provided by c2d_kernels.")
    module.__spec__ = ModuleSpec(name, loader=None, is_package=name != _NAMES[-1])
    if name != _NAMES[-1]:
        module.__path__ = []

    def missing(attribute: str) -> object:
        raise AttributeError(
            f"{name} has no {attribute!r} here: c2d_kernels stands in for mamba_ssm and offers "
            f"{' and '.join(_OFFERED)} of {_NAMES[-1]} only."
        )

    vars(module).update(__version__="0+c2d_kernels", __c2d_kernels__=True, __getattr__=missing)
    return module
