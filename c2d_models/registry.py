"""Networks by name, with their published hyper-parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from .hiet import HiET, HiETMambaIRv2, HiETSRFormer
from .hiif import DECODERS
from .hit import HiTSIR, HiTSRF
from .mambairv2 import MambaIRv2
from .srformer import SRFormer
from .swinir import SwinIR
from .upsamplers import Network


@dataclass(frozen=True)
class Preset:
    """A network class with the arguments that make it the named network."""

    constructor: type[Network]
    config: Mapping[str, Any]


_HIIF_L = dict(DECODERS["hiif_l"])
_HIIF_L_TINY = {**_HIIF_L, "width": 32}
_SWINIR_L = {
    "dim": 60,
    "depths": [6, 6, 6, 6],
    "num_heads": 6,
    "window_size": 8,
    "mlp_ratio": 2,
    "decoder": _HIIF_L,
}
_SRFORMER_L = {**_SWINIR_L, "window_size": 16}
_HIT = {
    "dim": 60,
    "groups": 4,
    "windows": [4, 8, 16, 32, 48, 64],
    "base_window": 8,
    "num_heads": 6,
    "mlp_ratio": 2,
    "decoder": _HIIF_L,
}
_STATE_SPACE = {"d_state": 8, "inner_rank": 32, "num_tokens": 64}
_MAMBAIRV2_L = {
    "dim": 48,
    "depths": [5, 5, 5, 5],
    "num_heads": 4,
    "window_size": 16,
    "mlp_ratio": 1,
    **_STATE_SPACE,
    "decoder": _HIIF_L,
}
_HIET_SWINIR = {
    "dim": 60,
    "blocks": 4,
    "windows": [64, 32],
    "bottom": 8,
    "num_heads": 6,
    "mlp_ratio": 2,
    "decoder": _HIIF_L,
}
_HIET_SRFORMER = {**_HIET_SWINIR, "bottom": 16}
_HIET_MAMBAIRV2 = {
    "dim": 48,
    "blocks": 4,
    "windows": [64, 32],
    "bottom": 16,
    "num_heads": 4,
    "mlp_ratio": 1,
    **_STATE_SPACE,
    "decoder": _HIIF_L,
}
_TINY = {"dim": 32, "num_heads": 4, "decoder": _HIIF_L_TINY}

NETWORKS: Mapping[str, Preset] = MappingProxyType(
    {
        "swinir_l": Preset(SwinIR, _SWINIR_L),
        "swinir_l_tiny": Preset(SwinIR, {**_SWINIR_L, **_TINY, "depths": [2, 2]}),
        "srformer_l": Preset(SRFormer, _SRFORMER_L),
        "mambairv2_l": Preset(MambaIRv2, _MAMBAIRV2_L),
        "hit_sir": Preset(HiTSIR, _HIT),
        "hit_sir_tiny": Preset(HiTSIR, {**_HIT, **_TINY, "groups": 2}),
        "hit_srf": Preset(HiTSRF, _HIT),
        "hiet_swinir": Preset(HiET, _HIET_SWINIR),
        "hiet_swinir_tiny": Preset(HiET, {**_HIET_SWINIR, **_TINY, "blocks": 2}),
        "hiet_srformer": Preset(HiETSRFormer, _HIET_SRFORMER),
        "hiet_srformer_tiny": Preset(HiETSRFormer, {**_HIET_SRFORMER, **_TINY, "blocks": 2}),
        "hiet_mambairv2": Preset(HiETMambaIRv2, _HIET_MAMBAIRV2),
        "hiet_mambairv2_tiny": Preset(HiETMambaIRv2, {**_HIET_MAMBAIRV2, **_TINY, "blocks": 2}),
    }
)


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
        ValueError: no network or decoder of that name, or a scale that is not a whole number.
        TypeError: an argument in `config` that the network does not have.
    """
    if name not in NETWORKS:
        close = get_close_matches(str(name), NETWORKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no network {name!r}; {hint}known are {', '.join(NETWORKS)}")
    preset = NETWORKS[name]
    arguments = {**preset.config, **(config or {})}
    if isinstance(arguments["decoder"], str):
        if arguments["decoder"] not in DECODERS:
            raise ValueError(
                f"there is no decoder {arguments['decoder']!r}; known are {', '.join(DECODERS)}, "
                "or give its width, levels, heads and attentions"
            )
        arguments["decoder"] = dict(DECODERS[arguments["decoder"]])
    net = preset.constructor(scale, **arguments)
    net.name = name
    return net
