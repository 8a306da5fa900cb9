"""The files of a training run: its newest state and weights, its best weights, and earlier ones."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..files import temporary, write_whole
from ..networks import checkpoint
from ..networks.network import Network

BEST = "best.safetensors"
_KEPT = re.compile(r"(?:model|state)_(\d+)\.(?:safetensors|pt)")


class RunFolder:
    """`output` of a configuration.

    - `model.safetensors`: the averaged weights, and `state.pt`, from which a run goes on;
    - `best.safetensors`: the averaged weights of the highest held-out PSNR;
    - `model_<step>.safetensors` and `state_<step>.pt`: the last `keep` of the first two.

    Each file appears whole or not at all.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.folder, self.keep = folder, keep

    @property
    def state(self) -> Path:
        return self.folder / "state.pt"

    @property
    def weights(self) -> Path:
        return self.folder / checkpoint.FILE_NAME

    def save(self, net: Network, record: dict[str, Any], state: dict[str, Any]) -> None:
        """Write the weights and then the state, and drop what is older than the last `keep`.

        In this order a state on disk says that its weights are there too, so a run that is killed
        between the two goes on from the state before. Raises OSError if there is no room; what was
        written before remains.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = io.BytesIO()  # torch's own writing to a file does not say that a disk is full
        torch.save(state, whole)
        checkpoint.save(net, self.weights, record=record)
        write_whole(self.state, whole.getbuffer())
        if self.keep:
            for file in (self.weights, self.state):
                _copy(file, file.with_stem(f"{file.stem}_{state['step']}"))
            self._drop_old()

    def save_best(self, net: Network, record: dict[str, Any]) -> None:
        """Write the best weights. Raises OSError if there is no room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(net, self.folder / BEST, record=record)

    def read_state(self, device: torch.device) -> dict[str, Any]:
        """Read the state that `save` wrote. Raises ConfigError if there is none."""
        try:
            state = torch.load(self.state, map_location=device, weights_only=True)
        except FileNotFoundError as error:
            raise ConfigError(f"nothing to resume: {self.state} does not exist") from error
        except Exception as error:  # on a damaged file the unpickler may raise anything
            raise ConfigError(f"cannot resume: {self.state} is not the state of a run") from error
        if not isinstance(state, dict):
            raise ConfigError(f"cannot resume: {self.state} is not the state of a run")
        return state

    def _drop_old(self) -> None:
        kept = {
            path: int(found[1])
            for path in self.folder.iterdir()
            if (found := _KEPT.fullmatch(path.name))
        }
        last = sorted(set(kept.values()))[-self.keep :]
        for path, step in kept.items():
            if step not in last:
                path.unlink(missing_ok=True)


def _copy(file: Path, to: Path) -> None:
    """Another name of the same file where the file system has that, else a copy."""
    to.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(file, to)
        return
    unfinished = temporary(to.parent)
    try:
        shutil.copyfile(file, unfinished)
        os.replace(unfinished, to)
    finally:
        unfinished.unlink(missing_ok=True)
