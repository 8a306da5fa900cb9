"""Model files: ours, which say what they hold, and those of the published networks' authors."""

import json
import os
import pickle
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from .registry import NETWORKS, create
from .upsamplers import Network

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the shipped models."""

FILE_NAME = "model.safetensors"
"""The model file in a folder: of `save_pretrained`, of a training run."""

FORMAT = 1
"""Version of the metadata; a file with a higher one is refused."""

_WRAPPERS = ("params_ema", "params", "state_dict", "model")
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


class ModelFileError(ValueError):
    """A model file that is missing, broken, or of something else; the message says which."""


@dataclass(frozen=True)
class ModelInfo:
    """A shipped model: the name to `load` it by, its file, factor (None: any) and sizes."""

    name: str
    path: Path
    scale: int | None
    params: int
    size_bytes: int


def save(
    net: Network,
    path: str | Path,
    record: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network with all that `load` needs, as safetensors.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Args:
        net: the network; its name, scale and config go into the file's metadata.
        path: the file, `*.safetensors`.
        record: how the weights came to be (JSON values), kept for `read_record`; the network's
            own by default, which it has from the file that it was loaded from.
        dtype: store floating-point weights as this, e.g. torch.float16; as they are by default.
    """
    path = Path(path)
    header = {"name": net.name, "scale": net.scale, "config": net.config, "format": FORMAT}
    state = {
        name: (value.to(dtype) if dtype and value.is_floating_point() else value)
        .detach()
        .cpu()
        .contiguous()
        for name, value in net.state_dict().items()
    }
    record = net.record if record is None else record
    write_whole(
        path, to_bytes(state, {"c2d_isr": json.dumps(header), "record": json.dumps(record)})
    )


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all.

    Raises OSError with the file's name, as for a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what `write_whole` left beside `path` when its process was killed in the middle."""
    for rest in path.parent.glob(f".{path.name}.[0-9]*"):
        rest.unlink(missing_ok=True)


def load(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Network:
    """A trained network, in evaluation mode.

    Args:
        name_or_path: the name of a shipped model (see `list_models`), a file that `save` wrote, a
            folder with such a model.safetensors (of `save_pretrained` or of a training run), or an
            author's file of one of the published networks: .pth, .pt or .safetensors.
        device: where to put it.
        dtype: its floating-point type; by default float32, also for a half-precision file, and
            float64 for a float64 one.

    Raises:
        ModelFileError: no such model or file, a broken file, or one of something else.
    """
    path = find(name_or_path)
    state, metadata = _read(path)
    if "c2d_isr" in metadata:
        net = _build(path, _header(path, metadata))
    else:
        state = _unwrap(path, state)
        net = _recognise(path, state)
    half = (torch.float16, torch.bfloat16)
    state = {name: value.float() if value.dtype in half else value for name, value in state.items()}
    if any(value.dtype == torch.float64 for value in state.values()):
        net.double()
    _fill(path, net, state)
    net.record = _record(metadata)
    return net.to(device=device, dtype=dtype).eval()


def list_models() -> list[ModelInfo]:
    """The models that come with the package, by name."""
    return [_info(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]


def read_record(name_or_path: str | Path) -> dict[str, Any]:
    """The training record that `save` put into a file; empty for an author's file."""
    return _record(_read(find(name_or_path))[1])


def find(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, in a folder, or the path itself if it is a file.

    Raises:
        ModelFileError: neither; the sentence names what comes nearest.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / FILE_NAME).is_file():
            return path / FILE_NAME
        raise ModelFileError(f"{path} is a folder without a {FILE_NAME}")
    names = [shipped.stem for shipped in sorted(WEIGHTS.glob("*.safetensors"))]
    if str(name_or_path) in names:
        return WEIGHTS / f"{name_or_path}.safetensors"
    close = get_close_matches(str(name_or_path), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ModelFileError(
        f"there is no model or file {str(name_or_path)!r}; {hint}"
        f"shipped models: {', '.join(names) or 'none'}"
    )


def _info(path: Path) -> ModelInfo:
    try:
        with safe_open(path, "pt") as file:
            header = _header(path, file.metadata() or {})
            names = list(file.keys())
            params = sum(prod(file.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} cannot be read as a safetensors file: {error}") from error
    return ModelInfo(path.stem, path, header.get("scale"), params, path.stat().st_size)


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """What a file holds and its metadata; pickles are read without running code."""
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (pickle.UnpicklingError, LookupError) as error:  # text is taken for opcodes
        raise ModelFileError(
            f"{path} is not a file of weights: it is no pickle, or one that holds more than tensors"
        ) from error
    except Exception as error:  # the unpickler answers noise by any error there is
        reason = str(error).split("\n")[0]
        raise ModelFileError(f"{path} cannot be read as a model file: {reason}") from error


def _record(metadata: dict[str, str]) -> dict[str, Any]:
    return json.loads(metadata.get("record", "{}"))


def _header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Our metadata of a file, checked."""
    try:
        header = json.loads(metadata["c2d_isr"])
        version, name = header["format"], header["name"]
        header["scale"], header["config"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} does not say which network it holds") from error
    if version > FORMAT:
        raise ModelFileError(
            f"{path} was written by a newer version of this package (format {version}); update it"
        )
    if name not in NETWORKS:
        raise ModelFileError(
            f"{path} holds a network {name!r}, which this version does not know: it has "
            f"{', '.join(NETWORKS)}"
        )
    return header


def _build(path: Path, header: dict[str, Any]) -> Network:
    try:
        return create(header["name"], header["scale"], config=header["config"])
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise ModelFileError(
            f"{path} describes a {header['name']} that cannot be built: {error}"
        ) from error


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """An author's state dict, out of its wrappers, without data-parallel training's prefix."""
    while isinstance(content, dict):
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, dict) or not content:
        raise ModelFileError(f"{path} holds no state dict")
    if not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ModelFileError(f"{path} holds no state dict: not all its entries are named tensors")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return {
        name: value for name, value in content.items() if name.rsplit(".", 1)[-1] not in _BUFFERS
    }


def _recognise(path: Path, state: dict[str, Tensor]) -> Network:
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


def _fill(path: Path, net: Network, state: dict[str, Tensor]) -> None:
    """Load strictly; the first difference makes the sentence."""
    wanted = net.state_dict()
    for name in [*wanted, *state]:
        if name not in state:
            fault = f"{name} is missing"
        elif name not in wanted:
            fault = f"it has no {name}"
        elif wanted[name].shape != state[name].shape:
            fault = f"{name} is {tuple(wanted[name].shape)}, not {tuple(state[name].shape)}"
        else:
            continue
        raise ModelFileError(
            f"{path} does not fit {net.name} x{net.scale or ' continuous'}: {fault}"
        )
    net.load_state_dict(state)
