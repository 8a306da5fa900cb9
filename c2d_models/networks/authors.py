"""State dicts of the published networks' authors: unwrapped, and the network they fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ModelFileError, NetworkError
from .frame import Frame
from .registry import NETWORKS
from .wrappings import inner_state

_BUFFERS = (
    "relative_position_index",
    "relative_position_index_SA",
    "relative_position_index_OCA",
    "aligned_relative_position_index",
    "attn_mask",
    "relative_coords_table",
)
_LAYER = re.compile(r"layers\.(\d+)\.residual_group\.(?:blocks|layers)\.(\d+)\.")
_TAIL = (
    "conv_before_upsample.",
    "upsample.",
    "conv_up1.",
    "conv_up2.",
    "conv_hr.",
    "conv_last.",
    "conv_bicubic.",
    "conv_aux.",
    "conv_after_aux.",
)
_GREY_RANGE = 255.0
"""1.0 at the entry of SwinIR's networks against JPEG artefacts, whose windows of 7 tell them."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Networks of one kind of layer.

    Attributes:
        title: for a sentence.
        presets: our names for its members.
        first: prefix of the first layer's names, without `layers.0.residual_group.`.
        marks: names in the first layer that it has ...
        others: ... and names that it has not.
        read: makes the configuration, except for the frame.
    """

    title: str
    presets: tuple[str, ...]
    first: str
    marks: tuple[str, ...]
    others: tuple[str, ...]
    read: Callable[[State, str], dict[str, Any]]

    def claims(self, state: State) -> bool:
        """Whether a state has this family's layers."""
        prefix = f"layers.0.residual_group.{self.first}"
        has = [any(name.startswith(f"{prefix}{mark}") for name in state) for mark in self.marks]
        more = any(name.startswith(f"{prefix}{other}") for other in self.others for name in state)
        return all(has) and not more


def recognise(path: Path, content: Any) -> tuple[dict[str, Any], State]:
    """The network that a file's names and shapes are of, as in our metadata, and its state.

    The state is out of what training put around it, without derived buffers, and has the names that
    our network has: those of an up-sampler of several convolutions stand below `upsample`.

    Raises:
        ModelFileError: no known network, with what was found.
    """
    state = inner_state(path, content)
    family = next((each for each in FAMILIES if each.claims(state)), None)
    if family is None or _stranger(state) is not None:
        raise ModelFileError(f"{path} {_found(state)}")
    try:
        config = family.read(state, f"layers.0.residual_group.{family.first}")
        scale, frame = _frame(state, config)
    except (ArithmeticError, LookupError, ValueError, NetworkError) as error:
        raise ModelFileError(
            f"{path} holds a {family.title} whose shapes do not say its sizes"
        ) from error
    name = min(family.presets, key=lambda each: _distance(NETWORKS[each].config, config))
    config = {**_frame_defaults(name), **config, **frame.config}
    state = {key: x for key, x in state.items() if key.rsplit(".", 1)[-1] not in _BUFFERS}
    if frame.upsampler != "pixelshuffledirect":
        state = {
            f"upsample.{key}" if key.startswith(_TAIL) else key: value
            for key, value in state.items()
        }
    return {"name": name, "scale": scale, "config": config}, state


def authors_names(state: State) -> State:
    """A state of ours under its authors' names: what `recognise` does, undone."""
    return {_authors_name(name): value for name, value in state.items()}


def _authors_name(name: str) -> str:
    inner = name.removeprefix("upsample.")
    return inner if inner.startswith(_TAIL) else name


def _distance(preset: Mapping[str, Any], config: dict[str, Any]) -> tuple[int, int]:
    """How far a preset is from a configuration, by width and then by groups of layers."""
    groups = [len(each.get("depths", ())) for each in (preset, config)]
    return abs(preset["dim"] - config["dim"]), abs(groups[0] - groups[1])


def _frame_defaults(name: str) -> dict[str, Any]:
    """Values that undo what a preset has beside SwinIR lightweight's frame."""
    preset = NETWORKS[name].config
    standard = vars(Frame())
    return {key: standard[key] for key in standard if key in preset}


def _frame(state: State, config: dict[str, Any]) -> tuple[int, Frame]:
    """The scale and the frame that a state's tail and convolutions are of."""
    colours = state["conv_first.weight"].shape[1]
    options: dict[str, Any] = {"in_channels": colours}
    if "conv_after_body.0.weight" in state:
        options["resi_connection"] = "3conv"
    if config.get("window_size") == 7:
        options["img_range"] = _GREY_RANGE
    if "conv_before_upsample.0.weight" in state:
        width = options["num_feat"] = state["conv_before_upsample.0.weight"].shape[0]
        if "conv_up1.weight" in state:
            scale = 4 if "conv_up2.weight" in state else 2
            return scale, Frame(upsampler="nearest+conv", **options)
        steps = [
            isqrt(value.shape[0] // width)
            for name, value in state.items()
            if re.fullmatch(r"upsample\.\d+\.weight", name)
        ]
        kind = "pixelshuffle_aux" if "conv_bicubic.weight" in state else "pixelshuffle"
        return prod(steps), Frame(upsampler=kind, **options)
    if "conv_last.weight" in state:
        return 1, Frame(upsampler="", **options)
    return isqrt(state["upsample.0.weight"].shape[0] // colours), Frame(**options)


def _depths(state: State) -> list[int]:
    """Layers in each group."""
    layers = {match.groups() for name in state if (match := _LAYER.match(name))}
    counts = Counter(int(group) for group, _ in layers)
    return [counts[group] for group in range(len(counts))]


def _windows(table: Tensor, cell: int = 1) -> dict[str, int]:
    """The heads and the window that a bias table is of; a key is a cell of so many tokens."""
    rows, heads = table.shape
    return {"num_heads": heads, "window_size": (isqrt(rows) + 1) // 2 * cell}


def _ratio(state: State, name: str) -> float:
    """Hidden channels of an MLP, relative to its inputs."""
    hidden, channels = state[name].shape
    ratio = hidden / channels
    return int(ratio) if ratio == int(ratio) else ratio


def _swinir(state: State, first: str) -> dict[str, Any]:
    return {
        "dim": state["conv_first.weight"].shape[0],
        "depths": _depths(state),
        "mlp_ratio": _ratio(state, f"{first}mlp.fc1.weight"),
        **_windows(state[f"{first}attn.relative_position_bias_table"]),
    }


def _srformer(state: State, first: str) -> dict[str, Any]:
    config = _swinir(state, first)
    return config | _windows(state[f"{first}attn.relative_position_bias_table"], cell=2)


def _hat(state: State, first: str) -> dict[str, Any]:
    """The factor of its convolutions is 0.01 in all published files, which do not hold it."""
    config = _swinir(state, first)
    dim, window = config["dim"], config["window_size"]
    last = f"{first.removesuffix('blocks.0.')}overlap_attn."
    larger = isqrt(state[f"{last}relative_position_bias_table"].shape[0]) + 1 - window
    return config | {
        "compress_ratio": dim // state[f"{first}conv_block.cab.0.weight"].shape[0],
        "squeeze_factor": dim // state[f"{first}conv_block.cab.3.attention.1.weight"].shape[0],
        "conv_scale": 0.01,
        "overlap": (larger - window) // 2,
    }


def _swin2sr(state: State, first: str) -> dict[str, Any]:
    """The window is that of a buffer, 8 as published if the file has none."""
    index = state.get(f"{first}attn.relative_position_index")
    return {
        "dim": state["conv_first.weight"].shape[0],
        "depths": _depths(state),
        "mlp_ratio": _ratio(state, f"{first}mlp.fc1.weight"),
        "num_heads": state[f"{first}attn.logit_scale"].shape[0],
        "window_size": 8 if index is None else isqrt(index.shape[0]),
    }


def _mambairv2(state: State, first: str) -> dict[str, Any]:
    dim = state["conv_first.weight"].shape[0]
    hidden, d_state = state[f"{first}assm.selectiveScan.A_logs"].shape
    tokens, rank = state[f"{first}assm.embeddingB.weight"].shape
    ratio = hidden / dim
    return {
        "dim": dim,
        "depths": _depths(state),
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "d_state": d_state,
        "num_tokens": tokens,
        "inner_rank": rank,
        "mlp": "gated" if f"{first}convffn1.sg.conv.weight" in state else "conv",
        **_windows(state[f"{first}win_mhsa.relative_position_bias_table"]),
    }


def _mambair(state: State, first: str) -> dict[str, Any]:
    dim = state["conv_first.weight"].shape[0]
    hidden = state[f"{first}self_attention.out_norm.weight"].shape[0]
    ratio = hidden / dim
    light = f"{first}conv_blk.cab.4.weight" in state
    squeezed = state[f"{first}conv_blk.cab.{5 if light else 3}.attention.1.weight"]
    return {
        "dim": dim,
        "depths": _depths(state),
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "d_state": state[f"{first}self_attention.A_logs"].shape[1],
        "squeeze_factor": dim // squeezed.shape[0],
        "light": light,
    }


def _hit(state: State, first: str) -> dict[str, Any]:
    """Windows up to the base are told by their order alone: half of it, then it, as published."""
    base = 8
    depths = _depths(state)
    group = first.removesuffix("0.")
    cells = [
        state[f"{group}{i}.correlation.spatial_linear.weight"].shape[1] for i in range(depths[0])
    ]
    small = iter([base // 2, base])
    windows = [next(small) if count == 1 else base * isqrt(count) for count in cells]
    return {
        "dim": state["conv_first.weight"].shape[0],
        "groups": len(depths),
        "windows": windows,
        "base_window": base,
        "num_heads": state[f"{first}correlation.pos.pos3.2.weight"].shape[0],
        "mlp_ratio": _ratio(state, f"{first}mlp.fc1.weight"),
    }


def _hit_sng(state: State, first: str) -> dict[str, Any]:
    config = _hit(state, first)
    group = first.removesuffix("0.")
    embed = "correlation.ngram_window_partition.ngram_context.unigram_embed.weight"
    sides = [state[f"{group}{i}.{embed}"].shape[-1] for i in range(len(config["windows"]))]
    return config | {"windows": sides}


def _found(state: State) -> str:
    """Describe a state of no known family, for a sentence."""
    known = ", ".join(each.title for each in FAMILIES)
    if (title := _stranger(state)) is not None:
        return f"holds a {title}, of which this package has no network (it has {known})"
    names = ", ".join(list(state)[:3])
    return (
        f"holds weights of no network that is known here, {len(state)} tensors ({names}, ...); "
        f"known of their authors' files are {known}"
    )


def _stranger(state: State) -> str | None:
    """The network without one of ours that a state is of."""
    found = (title for title, mark in _STRANGERS.items() if any(mark in name for name in state))
    return next(found, None)


_STRANGERS = {
    "Swin2SR with a second body": "conv_first_hf.",
    "DAT": ".attn.attns.0.pos.",
}
"""Networks without one of ours, and what their names have."""
_SWIN = ("attn.qkv.", "attn.relative_position_bias_table", "mlp.fc1.")
_CORRELATION = ("correlation.pos.pos_proj.", "correlation.spatial_linear.")
FAMILIES = (
    Family("SwinIR", ("swinir_l", "swinir_m"), "blocks.0.", _SWIN, ("conv_block.",), _swinir),
    Family(
        "HAT", ("hat_s", "hat", "hat_large"), "blocks.0.", (*_SWIN, "conv_block.cab."), (), _hat
    ),
    Family(
        "SRFormer",
        ("srformer_l", "srformer_m"),
        "blocks.0.",
        ("attn.kv.", "attn.q."),
        (),
        _srformer,
    ),
    Family(
        "Swin2SR",
        ("swin2sr_l", "swin2sr_m"),
        "blocks.0.",
        ("attn.logit_scale", "attn.cpb_mlp.", "attn.q_bias"),
        (),
        _swin2sr,
    ),
    Family(
        "MambaIRv2",
        ("mambairv2_l", "mambairv2_base", "mambairv2_large"),
        "layers.0.",
        ("assm.selectiveScan.A_logs", "win_mhsa."),
        (),
        _mambairv2,
    ),
    Family(
        "MambaIR",
        ("mambair_l", "mambair"),
        "blocks.0.",
        ("self_attention.A_logs", "conv_blk.cab."),
        (),
        _mambair,
    ),
    Family(
        "HiT-SRF",
        ("hit_srf",),
        "blocks.0.",
        (*_CORRELATION, "mlp.dwconv."),
        ("correlation.ngram",),
        _hit,
    ),
    Family(
        "HiT-SIR",
        ("hit_sir",),
        "blocks.0.",
        _CORRELATION,
        ("mlp.dwconv.", "correlation.ngram"),
        _hit,
    ),
    Family(
        "HiT-SNG",
        ("hit_sng",),
        "blocks.0.",
        (*_CORRELATION, "correlation.ngram_window_partition."),
        (),
        _hit_sng,
    ),
)
"""In the order in which they are tried."""
