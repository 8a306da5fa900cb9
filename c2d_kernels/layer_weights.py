"""The weights of layers in one piece: named as their modules are, listed as their ops take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import checks, dispatch


def names(*modules: str) -> tuple[str, ...]:
    """The modules' weights and biases, in the order in which the op takes them."""
    return tuple(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))


def mlp_shapes(weights: Mapping[str, Tensor], channels: int) -> dict[str, tuple[int, int]]:
    """The weights' shapes of the MLP fc1, fc2 on `channels`, its width read from fc1.weight."""
    fc1 = weights.get("fc1.weight")
    hidden = fc1.shape[0] if isinstance(fc1, Tensor) and fc1.dim() == 2 else 1
    if hidden == 0:
        raise ValueError("weights['fc1.weight'] must have at least one row, got none.")
    return {"fc1": (hidden, channels), "fc2": (channels, hidden)}


def ordered(
    like: Tensor,
    weights: Mapping[str, Tensor],
    order: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    optional: Sequence[str] = (),
) -> list[Tensor]:
    """The tensors of a layer in this order, such as "fc1.weight" and "fc1.bias".

    `shapes` has each module's weight; its bias is as long as the weight has rows. `optional` names
    modules that a layer may lack, all of them together.
    """
    for name in weights:
        if name not in order:
            raise ValueError(f"weights holds {name!r}; a layer has {', '.join(order)}.")
    may_lack = [name for name in order if name.split(".")[0] in optional]
    if not any(name in weights for name in may_lack):
        order = [name for name in order if name not in may_lack]
    for name in order:
        if name not in weights:
            else_none = f", or nothing of {', '.join(optional)}" if name in may_lack else ""
            raise ValueError(f"weights must hold {name!r}{else_none}.")
        module, kind = name.split(".")
        expected = shapes[module] if kind == "weight" else shapes[module][:1]
        checks.parameters(like, **{f"weights[{name!r}]": weights[name]})
        checks.shape(f"weights[{name!r}]", weights[name], expected, "its own")
    return [weights[name] for name in order]


def autocast(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Matrices in autocast's dtype, if x is on a GPU: a kernel there multiplies in their dtype."""
    dtype = dispatch.autocast_dtype(x.device) if x.is_cuda else None
    if dtype is None or dispatch.requested() == "reference":
        return weights
    return [weight.to(dtype) if weight.dim() == 2 else weight for weight in weights]


def zeros(
    order: Sequence[str], shapes: Mapping[str, tuple[int, ...]], device: torch.device
) -> list[Tensor]:
    """Weights for an operator's example, by the shapes of the modules' weights."""
    parts = (name.split(".") for name in order)
    sizes = (shapes[module] if kind == "weight" else shapes[module][:1] for module, kind in parts)
    return [torch.zeros(size, device=device) for size in sizes]
