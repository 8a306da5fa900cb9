"""How good a network is on photographs that training never sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import metrics, resize
from ..networks.network import Network
from .data import Pair


@dataclass(frozen=True)
class Validation:
    """Pairs of held-out crops by scale, and where networks enlarge them."""

    pairs: Mapping[float, list[Pair]]
    device: torch.device

    def scores(self, net: Network) -> dict[str, float]:
        """PSNR-Y (dB), the mean at each scale: {"psnr_x4": ...}."""
        scores = {}
        for scale, pairs in self.pairs.items():
            border = math.ceil(scale)
            values = [
                metrics.psnr_y(self._enlarge(net, lr, hr), hr.float() / 255, border)
                for lr, hr in pairs
            ]
            scores[f"psnr_x{scale:g}"] = sum(values) / len(values)
        return scores

    def pictures(self, net: Network, count: int = 4) -> dict[str, Tensor]:
        """Bicubic, ours and the original beside each other, of `count` crops at the largest scale.

        (3, H, 3 W) in [0, 1] by a name that says so.
        """
        scale, shown = max(self.pairs), {}
        for number, (lr, hr) in enumerate(self.pairs[scale][:count]):
            height, width = hr.shape[-2:]
            bicubic = resize.imresize(lr, size=(height, width)) / 255
            row = [bicubic, self._enlarge(net, lr, hr).clamp(0, 1), hr / 255]
            shown[f"held out x{scale:g}: bicubic, ours, original/{number}"] = torch.cat(row, dim=-1)
        return shown

    @torch.no_grad()
    def _enlarge(self, net: Network, lr: Tensor, hr: Tensor) -> Tensor:
        """uint8 (3, h, w) to float (3, H, W) of the size of `hr`, on the CPU."""
        net.eval()
        small, (height, width) = lr[None].float().to(self.device) / 255, hr.shape[-2:]
        sr = net(small) if net.scale is not None else net(small, size=(height, width))
        return sr[0].float().cpu()


def mean_psnr(scores: Mapping[str, float]) -> float:
    """Mean PSNR over the scales of what `Validation.scores` gave; other entries are ignored."""
    values = [value for name, value in scores.items() if name.startswith("psnr_")]
    return sum(values) / len(values)
