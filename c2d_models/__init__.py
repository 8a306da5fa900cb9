"""Networks for efficient super-resolution, their training, evaluation and use on photographs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks.network import Network
    from .networks.registry import create, register
    from .pretrained.exporting import export
    from .pretrained.loading import list_models, load
    from .upscaling.in_memory import upscale

__all__ = ["Network", "create", "export", "list_models", "load", "register", "upscale"]

# Loaded when first asked for: `c2d --help` need not wait for torch, nor a network for libvips.
_HOMES = {
    "Network": "networks.network",
    "create": "networks",
    "export": "pretrained.exporting",
    "list_models": "pretrained.loading",
    "load": "pretrained.loading",
    "register": "networks.registry",
    "upscale": "upscaling.in_memory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
