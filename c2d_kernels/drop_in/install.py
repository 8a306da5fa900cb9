"""`install_as_mamba_ssm`: code that was written for mamba_ssm runs on `selective_scan`."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..dispatch import BackendError
from . import functions, mamba, norms

_NORMS = {
    "RMSNorm": norms.RMSNorm,
    "rms_norm_fn": norms.rms_norm_fn,
    "layer_norm_fn": norms.layer_norm_fn,
}
_SCAN = {
    "selective_scan_fn": functions.selective_scan_fn,
    "selective_scan_ref": functions.selective_scan_ref,
    "mamba_inner_fn": functions.mamba_inner_fn,
}
_CONVOLUTION = {
    "causal_conv1d_fn": functions.causal_conv1d_fn,
    "causal_conv1d_update": functions.causal_conv1d_update,
}
_OFFERED: dict[str, dict[str, Any]] = {
    "mamba_ssm": {"Mamba": mamba.Mamba, **_SCAN},
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": mamba.Mamba},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _SCAN,
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layernorm": _NORMS,
    "mamba_ssm.ops.triton.layer_norm": _NORMS,  # its name from mamba_ssm 2 on
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": functions.selective_state_update
    },
    "causal_conv1d": _CONVOLUTION,
    "causal_conv1d.causal_conv1d_interface": _CONVOLUTION,
}
# Compiled modules of mamba_ssm and of networks beside it, which code imports by these names.
_REFUSED = (
    "selective_scan_cuda",
    "selective_scan_cuda_core",
    "selective_scan_cuda_oflex",
    "selective_scan_cuda_ndstate",
    "causal_conv1d_cuda",
)


def install_as_mamba_ssm(*, force: bool = False) -> None:
    """Make `mamba_ssm` and `causal_conv1d` importable, backed by this package.

    They offer the block Mamba, selective_scan_fn and selective_scan_ref, mamba_inner_fn,
    selective_state_update, causal_conv1d_fn and causal_conv1d_update, RMSNorm, rms_norm_fn and
    layer_norm_fn where mamba_ssm has them, with its arguments, on CPU and GPU, with gradients, and
    weights load as they are: networks that import them run as they are. Anything else that is
    imported from there is refused in a sentence. Import the network after the call. Calling again
    changes nothing. An installed causal_conv1d stays.

    Args:
        force: take the place of an installed mamba_ssm in this process.

    Raises:
        BackendError: mamba_ssm itself is installed, or imported, and `force` is not given.
    """
    if _is_ours("mamba_ssm"):
        return
    if not force and _is_there("mamba_ssm"):
        raise BackendError(
            "mamba_ssm itself is installed here: uninstall it, or call "
            "install_as_mamba_ssm(force=True) to take its place in this process."
        )
    packages = ["mamba_ssm"] if _is_there("causal_conv1d") else ["mamba_ssm", "causal_conv1d"]
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]
    for name, offered in _OFFERED.items():  # a package before its submodules
        if name.split(".")[0] in packages:
            module = sys.modules[name] = _module(name, offered)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    if not any(isinstance(finder, _Refusals) for finder in sys.meta_path):
        sys.meta_path.append(_Refusals())


def _is_ours(name: str) -> bool:
    return getattr(sys.modules.get(name), "__c2d_kernels__", False)


def _is_there(name: str) -> bool:
    """Whether the package is imported or installed, and is not ours."""
    if _is_ours(name):
        return False
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _refusal(what: str) -> str:
    names = dict.fromkeys(name for offered in _OFFERED.values() for name in offered)
    return (
        f"{what} is not here: c2d_kernels stands in for mamba_ssm and causal_conv1d and offers "
        f"{', '.join(names)} only."
    )


class _Refusals:
    """The last finder of imports: says what our modules do not have."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse a module that a part of ours, or code beside it, is asked for."""
        package = name.split(".")[0]
        if _is_ours("mamba_ssm") and (
            name in _REFUSED or (name != package and _is_ours(package) and name not in _OFFERED)
        ):
            raise ModuleNotFoundError(_refusal(f"the module {name}"), name=name)


def _module(name: str, offered: dict[str, Any]) -> ModuleType:
    """A module with what is offered, which refuses anything else."""
    module = ModuleType(name, "Part of mamba_ssm's interface, provided by c2d_kernels.")
    package = any(other.startswith(f"{name}.") for other in _OFFERED)
    module.__spec__ = ModuleSpec(name, loader=None, is_package=package)
    if package:
        module.__path__ = []

    def missing(attribute: str) -> object:
        # `from module import x` shows the sentence of an ImportError only; that Python's own
        # attributes are not there must stay an AttributeError.
        if attribute.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        raise ImportError(_refusal(f"{name}.{attribute}"), name=name)

    vars(module).update(
        offered, __version__="0+c2d_kernels", __c2d_kernels__=True, __getattr__=missing
    )
    return module
