"""Networks for other programs: their authors' state dicts, ONNX, and torch.export's programs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels.accelerate.structure import position_index, shift_mask

from ..errors import ModelFileError
from ..files import write_whole
from ..networks.authors import FAMILIES, authors_names
from ..networks.hat import authors_overlapping_index
from ..networks.network import Network
from ..networks.swin2sr import coordinates
from . import loading

SUFFIXES = {".pth": "authors", ".onnx": "onnx", ".pt2": "torch-export"}
"""The format that a file's name asks for."""
_MASKED = 64
"""About the side of the maps that the authors' masks are for, their patches in training."""


def export(
    model: str | Path | Network,
    path: str | Path,
    format: str | None = None,
    *,
    image_size: int | None = None,
) -> Path:
    """Write a network of one scale for other programs.

    Formats:
        authors: {"params": state dict}, with the names and the buffers that the authors' code loads
            strictly; of the published networks.
        onnx: images (batch, channels, height, width) of any size, float32 in [0, 1], by ONNX's
            standard operators. Needs the packages onnx and onnxscript.
        torch-export: a program of torch.export for any size, of this package's operators: import
            c2d_kernels before torch.export.load.

    Args:
        model: a network, a shipped model's name, a file or folder.
        path: the file; it appears whole or not at all.
        format: by default what the name's ending says: .pth, .onnx or .pt2.
        image_size: side of the maps that the authors' masks are for, a multiple of the window;
            their `img_size`. Of the format authors alone.

    Returns:
        The path.

    Raises:
        ModelFileError: an unknown format, or a network that it cannot hold.
    """
    path = Path(path)
    format = format or SUFFIXES.get(path.suffix.lower())
    if format not in _WRITERS:
        raise ModelFileError(
            f"{path.name} does not say a format: name it .pth, .onnx or .pt2, or give one of "
            f"{', '.join(_WRITERS)}"
        )
    net = model if isinstance(model, Network) else loading.load(model)
    if net.scale is None:
        raise ModelFileError(
            f"{net.name} is continuous, and a file needs a fixed scale: export a discrete one"
        )
    if image_size is not None and format != "authors":
        raise ModelFileError("an image size applies to the format authors only")
    training = net.training
    try:
        content = _WRITERS[format](net.eval(), image_size)
    finally:
        net.train(training)
    write_whole(path, content)
    return path


def _authors(net: Network, image_size: int | None) -> bytes:
    """A pickle of {"params": ...}, as BasicSR writes them."""
    family = next((each for each in FAMILIES if net.name in each.presets), None)
    state = {name: value.detach().cpu() for name, value in net.state_dict().items()}
    state = authors_names(state)
    if family is None or not family.claims(state):
        known = ", ".join(each.title for each in FAMILIES)
        raise ModelFileError(f"{net.name} has no authors' format; these have: {known}")
    file = io.BytesIO()
    torch.save({"params": {**state, **_buffers(net, state, image_size)}}, file)
    return file.getvalue()


def _buffers(net: Network, state: dict[str, Tensor], image_size: int | None) -> dict[str, Tensor]:
    """Indices and masks that the authors' modules register."""
    window = net.config.get("window_size")
    if window is None:  # HiT-SNG alone has such buffers of HiT-SR's, MambaIR has none
        tables = [
            name for name in state if name.endswith(".ngram_attn.relative_position_bias_table")
        ]
        return {name.replace("bias_table", "index"): position_index(2) for name in tables}
    if net.name.startswith("mambairv2"):
        return {"relative_position_index_SA": position_index(window)}
    if net.name.startswith("hat"):
        overlap = net.config["overlap"]
        return {
            "relative_position_index_SA": position_index(window),
            "relative_position_index_OCA": authors_overlapping_index(window, overlap),
        }
    permuted = net.name.startswith("srformer")
    cell, prefix = (2, "aligned_") if permuted else (1, "")
    side = image_size or (126 if window == 7 else _MASKED // window * window)
    if side % window or side <= window:
        raise ModelFileError(
            f"image size is {side}; {net.name} needs a multiple of {window}, larger than that"
        )
    buffers = {}
    of_cosines = net.name.startswith("swin2sr")
    table = coordinates(window, torch.zeros(1)).view(1, 2 * window - 1, 2 * window - 1, 2)
    for name in state:
        if name.endswith(".norm1.weight"):
            layer = name.removesuffix("norm1.weight")
            buffers[f"{layer}attn.{prefix}relative_position_index"] = position_index(window, cell)
            if of_cosines:
                buffers[f"{layer}attn.relative_coords_table"] = table
            if int(layer.split(".")[-2]) % 2:
                buffers[f"{layer}attn_mask"] = shift_mask(side, side, window, window // 2, cell)
    return buffers


def _onnx(net: Network, image_size: int | None) -> bytes:
    """A model for ONNX Runtime and its like, out of the definitions of the operators."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ModelFileError(
            f"ONNX files need {' and '.join(missing)}: pip install onnx onnxscript"
        )
    if "d_state" in net.config:
        raise ModelFileError(
            f"{net.name} scans its tokens one after the other, for which ONNX has no operator"
        )
    with c2d_kernels.backend("reference"), _quiet():
        program = torch.onnx.export(
            _program(net),
            input_names=["image"],
            output_names=["enlarged"],
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    facts = {
        "scale": net.scale,
        "input": f"(batch, {net.in_channels}, height, width), float32 in [0, 1], "
        + ("RGB" if net.in_channels == 3 else "grey"),
        "network": net.name,
        "config": json.dumps(net.config),
    }
    for key, fact in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, str(fact)
    return proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says to its own developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _torch_export(net: Network, image_size: int | None) -> bytes:
    """A program of this package's operators."""
    file = io.BytesIO()
    torch.export.save(_program(net), file)
    return file.getvalue()


def _program(net: Network) -> torch.export.ExportedProgram:
    """For any batch and size: the example has more than one window along each axis."""
    parameter = next(net.parameters())
    side = 2 * net.min_overlap + 2
    image = torch.rand(2, net.in_channels, side, side + 8, device=parameter.device)
    free = torch.export.Dim.DYNAMIC
    sizes = ({0: free, 2: free, 3: free},)
    with torch.no_grad():
        return torch.export.export(net, (image.to(parameter.dtype),), dynamic_shapes=sizes)


_WRITERS: dict[str, Callable[[Network, int | None], bytes]] = {
    "authors": _authors,
    "onnx": _onnx,
    "torch-export": _torch_export,
}
