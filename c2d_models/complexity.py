"""What a network costs: parameters, and multiply-adds by the definitions of its operators."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from c2d_kernels.operators import counted_as_defined

from .upsamplers import Network


def parameters(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def gmacs(net: Network, height: int = 720, width: int = 1280) -> float:
    """Multiply-adds, in 10^9, of one picture enlarged to height x width.

    Counted by torch's FLOP counter, halved: products of matrices, convolutions, and each operator
    of c2d_kernels by the formula of its definition, whatever a kernel spares. A discrete network
    gets the smallest picture that it enlarges to at least that size, a continuous one a quarter.

    Args:
        net: of c2d_models. It is neither run nor changed: its copy on torch's meta device is.
        height, width: of the enlarged picture, pixels; 1280x720 is the papers' custom.

    Raises:
        ValueError: a size below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}.")
    ghost, scale = copy.deepcopy(net).to("meta").eval(), net.scale or 4
    image = torch.empty(1, 3, -(-height // scale), -(-width // scale), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), counted_as_defined():
        ghost(image) if net.scale else ghost(image, size=(height, width))
    return counter.get_total_flops() / 2e9
