"""Wrappers that training tools put around a network and its state dict, taken off again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from c2d_kernels.dispatch import plain

from ..errors import ModelFileError

_AVERAGED = (
    *("params_ema", "params-ema", "ema", "model_ema", "ema_model", "net_g_ema", "netG_ema"),
    *("state_dict_ema", "ema_state_dict", "generator_ema", "average"),
)
_RAW = (
    *("params", "state_dict", "model", "model_state_dict", "net", "net_g", "netG", "generator"),
    *("network", "module"),
)
# Of modules inside a network: torch.compile's, activation checkpointing's, FSDP's.
_INSIDE = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def inner_state(path: Path, content: Any) -> dict[str, Tensor]:
    """The network's weights by its own names, out of what a file holds.

    Averaged weights go before raw ones; a warning says so where a file holds both.
    """
    while isinstance(content, dict):
        found = _chosen(path, [key for key in content if isinstance(content[key], dict)])
        if found is None:
            break
        content = content[found]
    if not isinstance(content, dict) or not content:
        raise ModelFileError(f"{path} holds no state dict")
    if not all(isinstance(key, str) and isinstance(x, Tensor) for key, x in content.items()):
        raise ModelFileError(f"{path} holds no state dict: not all its entries are named tensors")
    return inner_names(path, content)


def inner_names(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose names are the network's own, without those of what held the network."""
    for inside in _INSIDE:
        state = {name.replace(inside, ""): value for name, value in state.items()}
    while True:
        parts = dict.fromkeys(name.partition(".")[0] for name in state if "." in name)
        found = _chosen(path, list(parts))
        if found is None:
            return state
        state = {
            name.removeprefix(f"{found}."): value
            for name, value in state.items()
            if name.startswith(f"{found}.")
        }


def _chosen(path: Path, names: list[str]) -> str | None:
    """Which of these holds the network: averaged weights before raw ones."""
    averaged = next((name for name in _AVERAGED if name in names), None)
    raw = next((name for name in _RAW if name in names), None)
    if averaged is not None and raw is not None:
        warnings.warn(
            f"{path} holds averaged weights ({averaged}) and raw ones ({raw}): "
            "the averaged ones are taken."
        )
    return averaged or raw


def unwrapped(net: nn.Module) -> nn.Module:
    """The network in torch.compile's, DataParallel's, DDP's or AveragedModel's module."""
    for name in ("_orig_mod", "module"):
        inner = getattr(net, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return net


def state_of(net: nn.Module, names: list[str] | None = None) -> dict[str, Tensor]:
    """The weights that a network computes with, by its own names.

    What pruning, weight and spectral norm or another parametrization keep in their place is
    replaced by the weight that they make.

    Args:
        names: of the network as its class makes it; by default those that are found.

    Raises:
        ModelFileError: a weight that is not plain: of an adapter, quantised or sharded.
    """
    net = unwrapped(net)
    found = {
        name.replace("_orig_mod.", ""): value
        for prefix, module in net.named_modules()
        for name, value in _own_state(prefix, module).items()
    }
    names = list(found) if names is None else names
    for name in names:
        if name not in found or not plain(found[name]):
            raise ModelFileError(
                f"the network has no plain {name} to write: merge adapters into the weights "
                "(merge_and_unload), gather what is sharded and save before quantising"
            )
    return {name: found[name] for name in names}


def _own_state(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, those that are made of others as what they are."""
    path = f"{prefix}." if prefix else ""
    if ".parametrizations" in prefix:
        return {}
    state: dict[str, Any] = {}
    hidden = set()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            state[tensor] = hook.apply_mask(module)
            hidden |= {f"{tensor}_orig", f"{tensor}_mask"}
        elif isinstance(hook, WeightNorm):
            state[hook.name] = hook.compute_weight(module)
            hidden |= {f"{hook.name}_g", f"{hook.name}_v"}
        elif isinstance(hook, SpectralNorm):
            state[hook.name] = hook.compute_weight(module, do_power_iteration=False)
            hidden |= {f"{hook.name}_{kind}" for kind in ("orig", "u", "v")}
    for name in getattr(module, "parametrizations", {}):
        state[name] = getattr(module, name)
    own = {**module._parameters, **module._buffers}
    for name, value in own.items():
        if value is not None and name not in hidden | module._non_persistent_buffers_set:
            state.setdefault(name, value)
    return {f"{path}{name}": value.detach() for name, value in state.items()}
