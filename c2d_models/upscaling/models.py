"""Which network enlarges: the one asked for, or the shipped one that suits a factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import UpscaleError
from ..networks.network import Network
from ..pretrained import loading


class Models:
    """The networks of a run, on its device, each loaded when a pass first needs it.

    Args:
        model: a network, a shipped model's name, a file or folder, or None for the shipped ones.
        device: where they compute.
    """

    def __init__(self, model: str | Path | Network | None, device: torch.device):
        self.device = device
        self.asked: Network | None = None
        self._loaded: dict[str, Network] = {}
        if isinstance(model, Network):
            self.asked = model.to(device)
            self.asked.prepare()
        elif model is not None:
            self.asked = self._load(model)

    def network(self, factor: float | None) -> Network:
        """For a factor from 1 to 4, or for None: another one on each axis, or a broken one."""
        return self.asked or self._load(choose_model(factor))

    def _load(self, model: str | Path) -> Network:
        if str(model) not in self._loaded:
            net = loading.load(model, self.device)
            net.float()
            net.prepare()
            self._loaded[str(model)] = net
        return self._loaded[str(model)]


def choose_model(factor: float | None) -> str:
    """The shipped model for a factor: a discrete one for exactly that, else a continuous one.

    HiET-SwinIR is preferred, and of two the larger.
    """
    shipped = loading.list_models()
    fitting = [m for m in shipped if m.scale is not None and m.scale == factor]
    fitting = fitting or [m for m in shipped if m.scale is None]
    if not fitting:
        request = f"scale {factor:g}" if factor else "this size"
        raise UpscaleError(
            f"no shipped model serves {request}; name a checkpoint file as the model."
        )
    return max(fitting, key=lambda m: (m.name.startswith("hiet_swinir"), m.params, m.name)).name


def title(net: Any) -> str:
    """A network's name for a sentence."""
    return net.name or type(net).__name__
