"""`accelerate`: the walk over a network's layers."""

from __future__ import annotations

import math
from collections.abc import Hashable

from torch import nn

from .kinds import KINDS, UNSERVED
from .plan import PLAN, Plan, replace
from .proof import difference
from .report import AccelerationError, Left, Replaced, Report
from .structure import Unlike, need

_PLAIN_VALUES = (bool, int, float, str, tuple, type(None))


def accelerate(net: nn.Module, *, tolerance: float = 1e-4, strict: bool = False) -> Report:
    """Run the layers of a network on this package's operators, in place.

    A layer is recognised by its class name, structure and index buffers. One of each kind is
    then tried in float32 with random parameters, H != W: outputs and gradients of its own forward
    and of the operators must agree. Weights, state_dict, hooks and names stay; copies and pickles
    are of the plain classes. A call runs as written where a part of the layer was exchanged,
    hooked, parametrized or adapted, where dropout is active, and for sizes that windows do not
    divide. Layers that an earlier call replaced are not listed again.

    Args:
        net: any module; its layers may be of any package.
        tolerance: the largest difference allowed, relative to max|out - x| and to the largest
            gradient.
        strict: refuse a network with a layer that is known and stays as it is.

    Returns:
        The report, whose `revert()` undoes it; `with accelerate(net):` does so at its end.

    Raises:
        AccelerationError: `strict`, and layers were left; nothing is changed.
        TypeError: net is not a module.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}.")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be positive and finite, got {tolerance}.")
    report, proved = Report(), dict[Hashable, float]()
    done: list[tuple[str, tuple[str, ...]]] = []  # paths of replaced layers, and what they call
    for path, layer in list(net.named_modules()):
        if any(_stands_for(outer, called, path) for outer, called in done):
            continue
        running = layer.__dict__.get(PLAN)
        if running is not None:
            done.append((path, running.called))
            continue
        name = type(layer).__name__
        reason = UNSERVED.get(name)
        listed = [outer for outer, _ in done] + [row.path for row in report.left]
        if not any(_is_within(outer, path) for outer in listed):
            reason = reason or _unknown(layer)
        kind = next((kind for kind in KINDS if name in kind.names and kind.claims(layer)), None)
        if kind is not None:
            try:
                plan = kind.read(layer)
                _prove(layer, plan, proved, tolerance)
                plain = type(layer)
                replace(layer, plan)
            except Unlike as unlike:
                reason = str(unlike)
            else:
                report._plain.append((layer, plain))
                report.replaced.append(Replaced(path, name, kind.operators))
                done.append((path, kind.called))
                continue
        if reason is not None:
            report.left.append(Left(path, name, reason))
    if strict and report.left:
        report.revert()
        lines = [f"{row.path} ({row.kind}): {row.reason}" for row in report.left]
        raise AccelerationError("Layers were left as they are: " + "; ".join(lines) + ".")
    return report


def _prove(layer: nn.Module, plan: Plan, proved: dict[Hashable, float], tolerance: float) -> None:
    """Refuse the layer if its kind differs from its plan by more than the tolerance."""
    shapes = tuple(parameter.shape for parameter in layer.parameters())
    numbers = tuple(
        (path, name, repr(value))
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN_VALUES) and name not in ("training", "drop_prob", "p")
    )
    kind = (type(layer), plan, shapes, numbers)
    if kind not in proved:
        try:
            proved[kind] = difference(layer, plan)
        except Unlike:
            raise
        except Exception as error:  # whatever somebody else's forward raises on a trial map
            raise Unlike(f"its trial raised {type(error).__name__}: {error}") from error
    worst = proved[kind]
    need(
        worst <= tolerance,
        f"on random parameters it differs from the operators by {worst:.1e}, "
        f"more than {tolerance:g}",
    )


def _stands_for(outer: str, called: tuple[str, ...], path: str) -> bool:
    """Whether a module is one that a replaced layer's operators stand for."""
    if not _is_within(outer, path):
        return False
    inner = path.removeprefix(f"{outer}." if outer else "")
    return not any(inner == name or _is_within(name, inner) for name in called)


def _is_within(outer: str, path: str) -> bool:
    return path != outer and path.startswith(f"{outer}." if outer else "")


def _unknown(layer: nn.Module) -> str | None:
    """Why a layer with attention of its own stays as it is; None for other modules."""
    attends = isinstance(layer, nn.MultiheadAttention) or any(
        name in layer._parameters for name in ("relative_position_bias_table", "logit_scale")
    )
    return "its attention is of no layer that is known here" if attends else None
