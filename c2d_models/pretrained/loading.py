"""Trained networks by name: the models that come with the package."""

from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ModelFileError
from ..networks import checkpoint
from ..networks.network import Network

WEIGHTS = Path(__file__).parents[1] / "weights"
"""The folder of the shipped models."""
PURPOSES = {
    "hiet_swinir_continuous": "any factor, best quality from lossless files",
    "hiet_swinir_photo": "any factor, from JPEG and other lossy or noisy files",
    "hiet_swinir_tiny_continuous": "any factor, several times as fast",
    "hiet_swinir_tiny_x4": "four times exactly, fastest",
}
"""What each shipped model is for."""


@dataclass(frozen=True)
class ModelInfo:
    """A shipped model: the name to `load` it by, its file, factor (None: any) and sizes."""

    name: str
    path: Path
    scale: int | None
    params: int
    size_bytes: int


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
        ModelFileError: no such model or file, a broken file, or one that holds something else.
    """
    return checkpoint.load(find(name_or_path), device, dtype)


def list_models() -> list[ModelInfo]:
    """The models that come with the package, by name."""
    return [_info(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]


def read_record(name_or_path: str | Path) -> dict[str, Any]:
    """The training record that `save` put into a file; empty for an author's file."""
    path = find(name_or_path)
    return checkpoint.record_of(path, checkpoint.read(path)[1])


def find(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, in a folder, or the path itself if it is a file.

    Raises:
        ModelFileError: neither; the sentence names what comes nearest.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        return checkpoint.file_in(path)
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
            header = checkpoint.header_of(path, file.metadata() or {})
            names = list(file.keys())
            params = sum(prod(file.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} cannot be read as a safetensors file: {error}") from error
    return ModelInfo(path.stem, path, header.get("scale"), params, path.stat().st_size)
