"""Modules that keep what depends on their weights alone, once `Network.prepare` asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import nn

from c2d_kernels.frozen import Guard, unwatched

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by name, each with the modules that it was made from.

    Each is valid as long as `Guard` sees no change in them: an update of the weights, by
    load_state_dict too, an exchanged module or a hook makes it anew. A copy begins empty.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[Guard, T]] = {}

    def get(self, name: str, make: Callable[[], T], *modules: nn.Module) -> T:
        """The value of that name; `make` gives it if there is none, or its modules changed."""
        found = self._values.get(name)
        if found is None or not found[0].holds(*modules):
            found = self._values[name] = (Guard(*modules), make())
        return found[1]

    def __reduce__(self) -> tuple[type[Kept[T]], tuple[()]]:
        return Kept, ()


class Preparable(nn.Module):
    """A module with something to make of its weights, which inference needs to make only once."""

    kept: Kept | None = None
    """What was made, while the network is prepared."""

    def once(self, name: str, make: Callable[[], T], *modules: nn.Module) -> T:
        """The result of `make` for the present state of `modules`, kept if the network is prepared.

        Where gradients are recorded or a graph is traced it is made anew: it belongs into them.
        """
        keeper = self.keeper
        if keeper is None:
            return make()
        return keeper.get(f"{name} {_autocast_dtypes()}", make, *modules)

    @property
    def keeper(self) -> Kept | None:
        """The store of this call; None while it is traced or differentiated, or if not prepared."""
        return self.kept if self.kept is not None and unwatched() else None


def _autocast_dtypes() -> list[torch.dtype]:
    """The type that autocast rounds to now: values made under it are of that type."""
    enabled = (kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))
    return [torch.get_autocast_dtype(kind) for kind in enabled]
