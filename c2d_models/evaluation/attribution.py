"""Local attribution maps: which input pixels a network used for a window of its output.

Gu and Dong, "Interpreting Super-Resolution Networks with Local Attribution Maps", 2021
(arXiv 2011.11036). The picture is blurred and sharpened step by step; at each step the gradient of
how much edge the window holds says which pixels of the input made it. Written from the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EvaluationError
from ..networks.network import Network

WINDOW, STEPS, SIGMA = 16, 50, 1.2
"""The paper's: pixels of the window's side, steps of the integral, blur at the path's beginning."""


def local_attribution(
    net: Network,
    lr: Tensor,
    window: tuple[int, int, int],
    *,
    steps: int = STEPS,
    sigma: float = SIGMA,
    scale: float | None = None,
) -> Tensor:
    """How much each pixel of `lr` added to the edges in a window of the enlarged picture.

    The integral over a in [0, 1] of dD(net(p(a)))/dp(a) * dp(a)/da (equation 5 of the paper) along
    the path p(a) = lr blurred by a Gaussian of (1 - a) sigma; D is `edges` in the window. Each
    step multiplies its exact difference of p by the gradient in its middle. The map sums up to
    D(net(lr)) - D(net(lr blurred by sigma)) but for the steps' error.

    Args:
        net: of `c2d_models`, in evaluation mode.
        lr: (3, H, W), floats in [0, 1], on the network's device.
        window: (top, left, size) in pixels of the enlarged picture.
        steps: of the integral, each one run of the network forward and backward.
        sigma: pixels of `lr`.
        scale: by which a continuous network enlarges; a discrete one has its own.

    Returns:
        (H, W), summed over the channels; may be negative.

    Raises:
        EvaluationError: steps or sigma not positive, a continuous network without a scale, or
            a window below 2 pixels or outside the picture.
    """
    if steps < 1 or not sigma > 0:
        raise EvaluationError(f"steps is {steps} and sigma {sigma:g}; give positive numbers")
    factor = net.scale or scale
    if factor is None:
        raise EvaluationError("a continuous network needs a scale")
    height, width = (round(side * factor) for side in lr.shape[-2:])
    top, left, size = window
    if size < 2 or min(top, left) < 0 or top + size > height or left + size > width:
        raise EvaluationError(
            f"window is {size}x{size} at ({left}, {top}) of a picture of {width}x{height}; "
            "give one of at least 2x2 inside it"
        )

    def detector(image: Tensor) -> Tensor:
        sr = net(image[None]) if net.scale else net(image[None], size=(height, width))
        return edges(sr[0, :, top : top + size, left : left + size])

    total = torch.zeros_like(lr)
    before = blur(lr, sigma)
    for step in range(steps):
        after = blur(lr, sigma * (1 - (step + 1) / steps))
        middle = blur(lr, sigma * (1 - (step + 0.5) / steps))
        total += _gradient(detector, middle) * (after - before)
        before = after
    return total.sum(0)


def diffusion_index(attribution: Tensor) -> float:
    """How far a map spreads, 100 (1 - Gini coefficient of its absolute values): 0 to 100.

    100 is a map that is the same everywhere, 100 / n one of n pixels with a single one used
    (equations 7 and 8 of the paper). NaN for a map of zeros.
    """
    values = attribution.abs().double().flatten().sort().values
    n = values.numel()
    # sum_ij |v_i - v_j| / (2 n^2 mean) counts v_i of rank i, from 1, 2 (2 i - n - 1) times.
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    gini = ((2 * ranks - n - 1) * values).sum() / (n * values.sum())
    return 100.0 * (1.0 - gini.item())


def edges(image: Tensor) -> Tensor:
    """The detector: lengths of the gradient of (..., H, W), summed over what has both neighbours.

    Differences to the next row and column; no pixel outside `image` is looked at.
    """
    down = image[..., 1:, :-1] - image[..., :-1, :-1]
    right = image[..., :-1, 1:] - image[..., :-1, :-1]
    # The norm has no derivative at zero: a millionth of the range keeps it finite.
    return (down.square() + right.square() + 1e-12).sqrt().sum()


def blur(image: Tensor, sigma: float) -> Tensor:
    """(C, H, W) by a Gaussian of `sigma` pixels, cut off at 4 sigma; edges are repeated."""
    radius = math.ceil(4 * sigma)
    if radius == 0:
        return image
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-((x / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def _gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(function(at), at)[0]
