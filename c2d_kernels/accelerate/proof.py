"""A layer's own forward against its plan, on random parameters: the layer is the specification."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch import without_autocast
from .plan import Plan
from .structure import need

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SMALL = 1e-2  # below this fraction of the largest, gradients are compared with the largest: noise
_SMALL_MAP = (1, 2)
_TOKENS = 32 * 32  # a window with more is tried on fewer windows


def difference(layer: nn.Module, plan: Plan) -> float:
    """The largest difference between the layer and its plan, relative to what the layer adds.

    Both run in a float32 copy in evaluation, whose parameters are random: fresh ones, with bias
    tables of 0 and tiny scales, would hide a wrong index. Outputs are compared relative to
    max|out - x|, gradients of x and of the parameters relative to their largest; windows above
    32x32 have outputs alone compared, on a smaller map: HiT-SR's own forward of one takes a second.
    """
    device = next(layer.parameters()).device
    need(device.type != "meta", "its parameters are on the meta device: load its weights first")
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        torch.inference_mode(False),
        torch.enable_grad(),
        without_autocast(device),
    ):
        twin = _twin(layer)
        plan.stage(twin)
        large = plan.window[0] * plan.window[1] > _TOKENS
        counts = _SMALL_MAP if large else plan.trial
        height, width = (count * side for count, side in zip(counts, plan.window, strict=True))
        features = torch.randn(1, height, width, plan.channels, device=device)
        seed = int(torch.randint(2**31, ()))
        torch.set_grad_enabled(not large)
        own, own_gradients = _result(type(layer).forward, twin, plan, features, seed)
        ours, gradients = _result(plan.run, twin, plan, features, seed)
    need(own.shape == ours.shape, f"it returns {tuple(own.shape)}, not {tuple(ours.shape)}")
    added = (own - features.reshape(own.shape)).abs().max()
    worst = float((own - ours).abs().max() / added)
    largest = max((float(gradient.abs().max()) for gradient in own_gradients), default=0.0)
    for mine, theirs in zip(gradients, own_gradients, strict=True):
        scale = max(float(theirs.abs().max()), _SMALL * largest)
        worst = max(worst, float((mine - theirs).abs().max()) / scale)
    return worst


def _twin(layer: nn.Module) -> nn.Module:
    """A float32 copy without hooks, its parameters random."""
    memo: dict[int, object] = {}
    for module in layer.modules():  # hooks may hold large objects: not copied
        memo.update({id(getattr(module, name)): OrderedDict() for name in _HOOKS})
    twin = copy.deepcopy(layer, memo).float().eval()
    torch.manual_seed(0)
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                values = torch.randn(parameter.shape, device=parameter.device)
                if isinstance(module, nn.LayerNorm):
                    values = 0.3 * values + (name == "weight")
                elif isinstance(module, (nn.Linear, nn.Conv2d)) and parameter.dim() > 1:
                    values /= parameter[0].numel() ** 0.5
                module._parameters[name] = nn.Parameter(values)
    return twin


def _result(
    forward: Callable[..., Any], twin: nn.Module, plan: Plan, features: Tensor, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """The forward's result and, where they are recorded, the gradients of a random sum of it."""
    torch.manual_seed(seed)
    x = features.clone().requires_grad_(torch.is_grad_enabled())
    out = forward(twin, *plan.example(x))
    if isinstance(out, tuple):
        out = out[0]
    if not out.requires_grad:
        return out, []
    inputs = [x, *twin.parameters()]
    factors = torch.linspace(-1, 1, out.numel(), device=out.device).cos().reshape(out.shape)
    found = torch.autograd.grad((out * factors).sum(), inputs, allow_unused=True)
    gradients = [
        torch.zeros_like(like) if gradient is None else gradient
        for gradient, like in zip(found, inputs, strict=True)
    ]
    return out.detach(), gradients
