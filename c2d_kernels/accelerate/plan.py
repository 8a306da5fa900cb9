"""How a recognised layer runs on the operators, and whether it may in this call."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from ..dispatch import plain
from .structure import Unlike, dropout_rate, need, no_surprises, numbers_of, part, within

PLAN = "_c2d_plan"
"""The attribute in which a replaced layer has its plan."""
_OWN_COPIES = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")

Part = tuple[str, type[nn.Module], tuple[tuple[str, object], ...]]


@dataclass(frozen=True)
class Plan:
    """A recognised layer: a subclass for each kind of layer reads it and runs it.

    Attributes:
        parts: the modules that the operators stand for, as they were when the layer was read.
        channels: of the map that goes in.
        window: height and width of the unit that the trial repeats.
    """

    names: ClassVar[tuple[str, ...]]
    """The class names under which such layers are published."""
    operators: ClassVar[str]
    """What runs it, for the report."""
    called: ClassVar[tuple[str, ...]] = ()
    """Children that are called as they are."""
    trial: ClassVar[tuple[int, int]] = (2, 3)
    """Units of `window` down and across in the map of the trial, so that its sides differ."""

    parts: tuple[Part, ...]
    channels: int
    window: tuple[int, int]

    @classmethod
    def claims(cls, layer: nn.Module) -> bool:
        """Whether a layer whose class has one of the names is meant to be of this kind."""
        return True

    @classmethod
    def read(cls, layer: nn.Module) -> Plan:
        """The plan of this layer. Raises Unlike where it is another one."""
        raise NotImplementedError

    def run(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The layer's forward on the operators; None for a call that must run as written."""
        raise NotImplementedError

    def divides(self, size: tuple[int, int]) -> bool:
        """Whether windows divide a map of this height and width."""
        return not (size[0] % self.window[0] or size[1] % self.window[1])

    def example(self, features: Tensor) -> tuple[Any, ...]:
        """Arguments of the forward for a map (B, H, W, C)."""
        raise NotImplementedError

    def stage(self, twin: nn.Module) -> None:
        """Prepare the copy of the layer that the trial runs."""

    @classmethod
    def parts_of(cls, layer: nn.Module) -> tuple[Part, ...]:
        """The modules that the operators stand for. Raises Unlike for one that might do more."""
        no_surprises(layer, cls.called)
        for name in _OWN_COPIES:
            own = getattr(type(layer), name, None)
            need(own is getattr(nn.Module, name, None), f"its class has a {name} of its own")
        return tuple(
            (path, type(module), numbers_of(module)) for path, module in within(layer, cls.called)
        )

    def applies(self, layer: nn.Module) -> bool:
        """Whether a call of each module would do no more than when the layer was read.

        An exchanged or parametrized child, a hook or an adapter on one, quantised weights and
        active dropout make the call run as written.
        """
        if _global_hooks():
            return False
        for path, kind, numbers in self.parts:
            module: nn.Module | None = layer
            for name in path.split(".") if path else ():
                module = None if module is None else module._modules.get(name)
            if module is None or numbers != numbers_of(module):
                return False
            if path and (type(module) is not kind or _does_more(module)):
                return False
            if module.training and dropout_rate(module) > 0:
                return False
            if not all(weight is None or plain(weight) for weight in module._parameters.values()):
                return False
        return True


def _does_more(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(
        hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in vars(module)
    )


def _global_hooks() -> bool:
    """Whether hooks are set on all modules of the process."""
    if torch.compiler.is_compiling():
        return False
    return bool(
        torch_modules._global_forward_hooks
        or torch_modules._global_forward_pre_hooks
        or torch_modules._global_backward_hooks
        or torch_modules._global_backward_pre_hooks
    )


def weights_of(**modules: nn.Module) -> Mapping[str, Tensor]:
    """The weights and biases of modules as an operator takes them; 0 for a bias that is not there.

    The weight of a 1x1 convolution becomes the matrix that it is.
    """
    weights: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        weights[f"{name}.weight"] = weight.flatten(1) if pointwise else weight
        weights[f"{name}.bias"] = (
            bias if isinstance(bias, Tensor) else weight.new_zeros(len(weight))
        )
    return weights


def conv_mlp_weights(mlp: nn.Module, norm: nn.Module) -> Mapping[str, Tensor]:
    """The weights of SRFormer's ConvFFN and its norm as conv_ffn takes them."""
    modules = {name: part(mlp, name) for name in ("fc1", "fc2")}
    return weights_of(dwconv=part(mlp, "dwconv.depthwise_conv.0"), norm=norm, **modules)


def gated_mlp_weights(mlp: nn.Module, norm: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a gated MLP, DAT's or MambaIRv2's, and its norm as gated_ffn takes them."""
    gate = {"gate_norm": part(mlp, "sg.norm"), "dwconv": part(mlp, "sg.conv")}
    modules = {name: part(mlp, name) for name in ("fc1", "fc2")}
    return weights_of(norm=norm, **gate, **modules)


def replacement(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a layer's class that runs its plan where the plan applies.

    A copy or a pickle of such a layer is of the plain class, and needs nothing of this package.
    """
    for known in kind.__subclasses__():
        if "_c2d_replaces" in vars(known):
            return known

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__.get(PLAN)
        if plan is not None and plan.applies(self):
            result = plan.run(self, *args, **kwargs)
            if result is not None:
                return result
        return kind.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: object) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != PLAN}
        return copyreg._reconstructor, (kind, object, None), state  # type: ignore[attr-defined]

    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "_c2d_replaces": kind,
    }
    return type(kind.__name__, (kind,), body)


def replace(layer: nn.Module, plan: Plan) -> None:
    """Make a layer run its plan."""
    if "__slots__" in vars(type(layer)):
        raise Unlike("its class has __slots__, so it cannot be changed")
    layer.__dict__[PLAN] = plan
    layer.__class__ = replacement(type(layer))


def restore(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Undo `replace`; a layer that was parametrized since keeps its class, and runs as written."""
    layer.__dict__.pop(PLAN, None)
    if type(layer) is not kind and type(layer).__mro__[1] is kind:
        layer.__class__ = kind
