"""The networks, by name: `create`."""

from . import hiet, hit, mambairv2, srformer, swinir  # noqa: F401 - each registers its presets
from .registry import NETWORKS, create

__all__ = ["NETWORKS", "create"]
