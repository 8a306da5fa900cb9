"""A network's cost: parameters, and multiply-adds by the definitions of its operators."""

from __future__ import annotations

import copy
import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from c2d_kernels.operators import counted_as_defined

from ..errors import ArgumentError
from .network import Network


def parameters(net: Network) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def gmacs(net: Network, height: int = 720, width: int = 1280, *, scale: float = 4) -> float:
    """Multiply-adds, in 10^9, of one picture enlarged to height x width.

    Counted by torch's FLOP counter, halved: products of matrices, convolutions, and each operator
    of c2d_kernels by the formula of its definition, whatever a kernel spares. The network
    gets the smallest picture that it enlarges to at least that size.

    Args:
        net: of c2d_models. It is neither run nor changed: its copy on torch's meta device is.
        height, width: of the enlarged picture, pixels; 1280x720 is the papers' custom.
        scale: by which a continuous network enlarges; a discrete one has its own.

    Raises:
        ArgumentError: a size below 1, or a scale that is not positive.
    """
    if height < 1 or width < 1:
        raise ArgumentError(f"height and width must be at least 1, got {height} and {width}.")
    if not scale > 0:
        raise ArgumentError(f"scale must be positive, got {scale}.")
    ghost = copy.deepcopy(net).to("meta").eval()
    # 864 / 2.7 is a little more than 320 in floating point
    small = [math.ceil(side / (net.scale or scale) - 1e-9) for side in (height, width)]
    image = torch.empty(1, 3, *small, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), counted_as_defined():
        ghost(image) if net.scale else ghost(image, size=(height, width))
    return counter.get_total_flops() / 2e9
