"""Colours under transparent pixels, which nobody sees but a network would.

Editors leave anything there, mostly black or white. Enlarged as it is, it bleeds into the rim of
what is visible. So the visible colours are spread over it first.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def spread_colours(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`pixels` (H, W, C) whose colours where `alpha` (H, W) is 0 are those of the neighbourhood.

    The pixels with alpha stay as they are. The others get the mean colour, weighted by alpha, of
    the smallest block of 2^k pixels around them that is visible at all, interpolated bilinearly
    between blocks (pull-push, Gortler et al. 1996). An image without a visible pixel becomes black.
    """
    hidden = alpha == 0
    if not hidden.any():
        return pixels
    if hidden.all():
        return np.zeros_like(pixels)
    weight = torch.from_numpy(alpha.astype(np.float32))[None, None]
    weight = weight / weight.max()
    colours = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    filled = _pull_push(colours * weight, weight)[0].permute(1, 2, 0).numpy()
    if pixels.dtype.kind != "f":
        filled = filled + 0.5
    out = pixels.copy()
    out[hidden] = filled[hidden].astype(pixels.dtype)
    return out


def _pull_push(weighted: Tensor, weight: Tensor) -> Tensor:
    """(1, C, H, W) colours everywhere, from their sums weighted by (1, 1, H, W) `weight`."""
    height, width = weight.shape[2:]
    if height == width == 1:
        return weighted / weight
    coarse = _pull_push(*(F.avg_pool2d(x, 2, ceil_mode=True) for x in (weighted, weight)))
    even = (2 * coarse.shape[2], 2 * coarse.shape[3])
    spread = F.interpolate(coarse, size=even, mode="bilinear", align_corners=False)
    spread = spread[..., :height, :width]
    return torch.where(weight > 0, weighted / weight.clamp_min(1e-20), spread)
