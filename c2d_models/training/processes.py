"""The processes of a training run: one, or several that `torchrun` started; and their signals.

Each process trains on samples of its own and all make the same step with the mean of their
gradients, so N processes of B samples walk the path of one process of N B samples. Whatever decides
where the path goes on (a loss that is not finite, a request to stop) is agreed on by all of them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..devices import choose_device
from ..errors import DeviceError


@dataclass(frozen=True)
class Processes:
    """This process among all of the run; alone by default.

    Attributes:
        device: where this process computes.
        rank: its number; process 0 alone writes files, prints and validates.
        count: how many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, net: nn.Module) -> nn.Module:
        """`net`, with gradients that `backward` averages over all processes."""
        if self.count == 1:
            return net
        return DistributedDataParallel(net)

    def mean(self, value: float) -> float:
        """Mean of `value` over all processes, the same to the last bit in each; NaN if one is."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / self.count

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in one process at least."""
        return self.mean(float(flag)) > 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.mean(0.0)


_groups: list[object] = []
"""Groups of this process, kept beyond their end: a network of `share` that outlives its group would
take it apart and then, now and then, wait for ever for one of gloo's threads (torch 2.13)."""


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Connect with the other processes, if `torchrun` started several: NCCL on CUDA, else gloo.

    Args:
        device: of the configuration; "cuda" takes the GPU of the process's own number.

    Raises:
        DeviceError: a device that is not there, or one GPU for several processes.
    """
    chosen = choose_device(device)
    kind = chosen.type
    # RANK and WORLD_SIZE alone are set by other programs too: a run would wait for peers forever.
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield Processes(chosen)
        return
    place = torch.device(kind)
    if kind == "cuda":
        if chosen.index is not None:
            raise DeviceError(
                f"device is {device}, but each of several processes takes a GPU of its own; "
                "use cuda."
            )
        place = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    _groups.append(dist.group.WORLD)
    try:
        yield Processes(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@dataclass
class Stop:
    """A request to stop: the signal's number, 0 while there is none."""

    number: int = 0


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """A flag that SIGINT and SIGTERM set instead of ending the process; a second one ends it."""
    stop = Stop()
    previous: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        stop.number = number
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
    try:
        yield stop
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
