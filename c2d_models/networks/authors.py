"""State dicts of the published networks' authors: unwrapped, and the network they fit."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ModelFileError
from .registry import create
from .wrappings import inner_state

if TYPE_CHECKING:
    from .network import Network

_BUFFERS = (
    "relative_position_index",
    "relative_position_index_SA",
    "aligned_relative_position_index",
    "attn_mask",
)
_CORRELATION = "blocks.0.correlation.pos.pos_proj.weight"
_PUBLISHED = {  # what only this network has in its first layer; the first that fits is taken
    "swinir_l": ("SwinIR-L", "blocks.0.attn.qkv.weight"),
    "srformer_l": ("SRFormer-L", "blocks.0.attn.kv.weight"),
    "mambairv2_l": ("MambaIRv2-L", "layers.0.assm.selectiveScan.A_logs"),
    "hit_srf": ("HiT-SRF", _CORRELATION, "blocks.0.mlp.dwconv.depthwise_conv.0.weight"),
    "hit_sir": ("HiT-SIR", _CORRELATION),
}


def unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """An author's state dict, out of what training put around it, without derived buffers."""
    return {
        name: value
        for name, value in inner_state(path, content).items()
        if name.rsplit(".", 1)[-1] not in _BUFFERS
    }


def recognise(path: Path, state: dict[str, Tensor]) -> Network:
    """A fresh network of the kind whose parameters' names a file has."""
    if "upsample.0.weight" in state:
        shape = state["upsample.0.weight"].shape
        scale = isqrt(shape[0] // 3) if shape else 0
        if scale and shape[0] == 3 * scale * scale:
            for name, (_, *marks) in _PUBLISHED.items():
                if {f"layers.0.residual_group.{mark}" for mark in marks} <= state.keys():
                    return create(name, scale)
    known = ", ".join(title for title, *_ in _PUBLISHED.values())
    raise ModelFileError(
        f"{path} holds weights of no network that is known here (authors' files: {known})"
    )
