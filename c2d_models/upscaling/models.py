"""Which network enlarges: the one asked for, or the shipped one that suits factor and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import UpscaleError
from ..networks.network import Network
from ..pretrained import loading

TINY = "tiny"
"""Asks for the small shipped model that suits a factor, and is part of such models' names."""
PHOTO = "photo"
"""Part of the names of models for files whose compression has left traces."""


class Models:
    """The networks of a run, on its device, each loaded when a pass first needs it.

    Args:
        model: a network, a shipped model's name, a file or folder; None for the shipped model that
            suits a factor, or "tiny" for the small one that does.
        device: where they compute.
    """

    def __init__(self, model: str | Path | Network | None, device: torch.device):
        self.device = device
        self.asked: Network | None = None
        self._tiny = model == TINY
        self._loaded: dict[str, Network] = {}
        if isinstance(model, Network):
            self.asked = model.to(device)
            self.asked.prepare()
        elif model is not None and not self._tiny:
            self.asked = self._load(model)

    def network(self, factor: float | None, lossy: bool = False) -> Network:
        """The network for a factor from 1 to 4, or None: another on each axis, or a broken one."""
        return self.asked or self._load(self.choice(factor, lossy))

    def choice(self, factor: float | None, lossy: bool = False) -> str:
        """The name of the shipped model that `network` takes where none was asked for."""
        return choose_model(factor, tiny=self._tiny, lossy=lossy)

    def _load(self, model: str | Path) -> Network:
        if str(model) not in self._loaded:
            net = loading.load(model, self.device)
            net.float()
            net.prepare()
            self._loaded[str(model)] = net
        return self._loaded[str(model)]


def choose_model(factor: float | None, *, tiny: bool = False, lossy: bool = False) -> str:
    """The shipped model for a factor.

    Large ones come before tiny ones, or only tiny ones count; then those for lossy or for lossless
    files, HiET-SwinIR before others, one for exactly this factor before a continuous one, and the
    larger.
    """

    def merit(info: loading.ModelInfo) -> tuple[bool, bool, bool, bool, int, str]:
        suited = (PHOTO in info.name) == lossy
        known = info.name.startswith("hiet_swinir")
        exact = info.scale is not None
        return TINY not in info.name, suited, known, exact, info.params, info.name

    fitting = [info for info in loading.list_models() if info.scale in (None, factor)]
    if tiny:
        fitting = [info for info in fitting if TINY in info.name]
    if not fitting:
        request = f"scale {factor:g}" if factor else "this size"
        raise UpscaleError(
            f"no shipped model supports {request}; name a checkpoint file as the model."
        )
    return max(fitting, key=merit).name


def title(net: Any) -> str:
    """A network's name for a sentence."""
    return net.name or type(net).__name__
