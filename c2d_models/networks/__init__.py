"""The networks, by name: `create`.

Every module here is imported, so that a network's own registers its presets and needs no line
elsewhere; all but `hub`, which takes as long to import as a tenth of torch and is asked for rarely.
"""

from importlib import import_module
from pkgutil import iter_modules

from .registry import NETWORKS, create

for _module in iter_modules(__path__):
    if _module.name != "hub":
        import_module(f"{__name__}.{_module.name}")

__all__ = ["NETWORKS", "create"]
