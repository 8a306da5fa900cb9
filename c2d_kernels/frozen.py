"""Weights that do not change, so that a whole-layer operator checks and folds them once.

An operator of a whole layer looks at a dozen weights in every call and makes the matrices that its
kernel reads: more than half the time of a layer on a map of 16x16. Given `FrozenWeights` it
remembers, per shape and settings, that the arguments were right, and keeps the matrices; at
inference the next such call goes straight to the CPU's kernel, or on a GPU to Triton's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import dispatch

_BACKENDS = {"cpu": "cpu", "cuda": "triton"}  # of whole layers
_MOST_SHAPES = 64  # of maps that are remembered; beyond that the memory is cleared


class FrozenWeights(dict[str, Tensor]):
    """Weights of a layer by name, which nobody changes as long as this lives.

    Whoever makes it watches them: see `Guard`.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__(weights)
        self.folded: dict[Hashable, Any] = {}
        self.ready: dict[Hashable, Callable[..., Tensor]] = {}


def ready(
    operator: str, weights: Mapping[str, Tensor], x: Tensor, *settings: Hashable
) -> Callable[..., Tensor] | None:
    """How to run what `keep` saw with such an x and settings; None if nothing was kept.

    Settings are what else the result rests on but features: numbers, tables, shapes.
    """
    if type(weights) is not FrozenWeights or not _direct(x):
        return None
    return weights.ready.get((operator, x.shape, *_kind(x), *settings))


def keep(
    operator: str,
    weights: Mapping[str, Tensor],
    x: Tensor,
    *settings: Hashable,
    fold: Callable[[], Any],
    run: Callable[..., Tensor],
) -> None:
    """Remember that these arguments were right, if the weights are frozen.

    Args:
        fold: gives what the kernel reads of weights and settings for a map of x's dtype.
        run: runs it, run(folded, x, ...).
    """
    if type(weights) is not FrozenWeights or not _direct(x):
        return
    kind = (operator, *_kind(x), *settings)
    if kind not in weights.folded:
        with dispatch.without_autocast(x.device):
            weights.folded[kind] = fold()
    if len(weights.ready) >= _MOST_SHAPES:
        weights.ready.clear()
    known = (operator, x.shape, *_kind(x), *settings)
    weights.ready[known] = partial(_run, run, weights.folded[kind])


def _kind(x: Tensor) -> tuple[Hashable, ...]:
    """The rest of what folded weights depend on: on a GPU, autocast's dtype too."""
    return x.device, x.dtype, dispatch.autocast_dtype(x.device) if x.is_cuda else None


def _run(run: Callable[..., Tensor], folded: Any, x: Tensor, *rest: Any) -> Tensor:
    with dispatch.without_autocast(x.device):
        return run(folded, x, *rest)


def unwatched() -> bool:
    """Whether nobody differentiates, traces or counts what runs now: it may be done in any way."""
    return (
        not torch.compiler.is_compiling()  # first: torch.compile cannot trace the others
        and not torch.is_grad_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and not dispatch.transformed()
    )


def _direct(x: Tensor) -> bool:
    """Whether a call may go past the operator to the device's kernel."""
    return (
        unwatched()
        and type(x) is Tensor
        and dispatch.requested() in ("auto", _BACKENDS.get(x.device.type))
        and x.device.type in _BACKENDS
    )


class Guard:
    """Whether modules still do what they did when this was made, at some 100 ns per module.

    It notices a module's exchange for another (as `holds` is given the present ones), a new class
    (a parametrization), a `forward` of its own, hooks, other parameters, buffers or children, and
    changes of a parameter in place or of its dtype or device. It cannot notice a write through
    `parameter.data` that torch itself does not count.
    """

    def __init__(self, *modules: nn.Module):
        self._modules = modules
        self._state = self._look()

    def holds(self, *modules: nn.Module) -> bool:
        """Whether these are the same modules in the same state."""
        mine = self._modules
        return (
            len(mine) == len(modules)
            and all(map(_is, mine, modules))
            and self._look() == self._state
        )

    def _look(self) -> tuple[object, ...]:
        seen: list[object] = []
        for module in self._modules:
            state = module.__dict__
            tensors = (*state["_parameters"].values(), *state["_buffers"].values())
            seen += (
                type(module),
                "forward" in state,
                bool(
                    state["_forward_hooks"]
                    or state["_forward_pre_hooks"]
                    or state["_backward_hooks"]
                    or state["_backward_pre_hooks"]
                ),
                tuple(map(id, state["_modules"].values())),
            )
            for tensor in tensors:
                if tensor is not None:
                    version = 0 if tensor.is_inference() else tensor._version
                    seen += (id(tensor), version, tensor.data_ptr())
        return tuple(seen)


def _is(a: object, b: object) -> bool:
    return a is b
