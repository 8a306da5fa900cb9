"""Networks by name, with their published hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import NetworkError
from .hiif import DECODERS

if TYPE_CHECKING:
    from .network import Network


@dataclass(frozen=True)
class Preset:
    """A network class with the arguments that make it the named network."""

    constructor: Callable[..., Network]
    config: Mapping[str, Any]


_networks: dict[str, Preset] = {}
NETWORKS: Mapping[str, Preset] = MappingProxyType(_networks)
HIIF_L = dict(DECODERS["hiif_l"])
TINY = {"dim": 32, "num_heads": 4, "decoder": {**HIIF_L, "width": 32}}
"""What the tiny presets change."""


def register(name: str, constructor: Callable[..., Network], config: Mapping[str, Any]) -> None:
    """Make a network known by a name, to `create`, `load` and `c2d train`.

    Args:
        name: of the preset.
        constructor: a subclass of `Network`; it is called with the scale and, by name, `config`.
        config: its arguments, JSON values only.

    Raises:
        NetworkError: the name is another network's.
    """
    known = _networks.get(name)
    if known is not None and known != Preset(constructor, config):
        raise NetworkError(f"a network named {name!r} already exists; choose another name")
    _networks[name] = Preset(constructor, config)


def create(name: str, scale: int | None = 4, *, config: Mapping[str, Any] | None = None) -> Network:
    """A network with fresh weights.

    Args:
        name: one of `NETWORKS`.
        scale: the factor, or None for a continuous network (HIIF-L up-sampler).
        config: constructor arguments that differ from the published ones. `decoder`, the numbers of
            a continuous network's up-sampler, may be a name: "hiif_l" (the default), "hiif".

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        NetworkError: no network or decoder of that name, or a scale that is not a whole number.
        TypeError: an argument in `config` that the network does not have.
    """
    if name not in NETWORKS:
        close = get_close_matches(str(name), NETWORKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise NetworkError(f"there is no network {name!r}; {hint}known are {', '.join(NETWORKS)}")
    preset = NETWORKS[name]
    arguments = {**preset.config, **(config or {})}
    if isinstance(arguments.get("decoder"), str):
        if arguments["decoder"] not in DECODERS:
            raise NetworkError(
                f"there is no decoder {arguments['decoder']!r}; known are {', '.join(DECODERS)}, "
                "or give its width, levels, heads and attentions"
            )
        arguments["decoder"] = dict(DECODERS[arguments["decoder"]])
    net = preset.constructor(scale, **arguments)
    net.name = name
    return net
