"""`c2d train --dry-run`: what a run would read, train, take and write, after a few of its steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import torch

from ..networks import complexity
from .config import TrainConfig
from .trainer import Trainer

_STEPS = 5


def rehearse(config: TrainConfig, resume: bool = False) -> Iterator[str]:
    """Lines to print, each as soon as it is known. Nothing is written.

    Raises ConfigError or DataError, as the run itself would.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    if resume:
        trainer.resume()
    data = trainer.data
    folders = ", ".join(str(folder) for folder in config.data)
    yield (
        f"data      {len(data.batches.files)} images train and {len(data.held_out)} are held out, "
        f"of {folders}"
    )
    yield from (f"          left out: {sentence}" for sentence in data.left_out)
    net = trainer.averaged
    scale = config.factor if config.stage == "discrete" else 4
    yield (
        f"network   {config.network}, {config.stage}: {complexity.parameters(net):,} parameters, "
        f"{complexity.gmacs(net, scale=scale):.2f} GMACs to 1280x720 at x{scale}"
    )
    first = trainer.step
    seconds = []
    for step in range(first, min(first + _STEPS, config.steps)):
        began = time.perf_counter()
        trainer.train_step(trainer.batches.batch(step))
        seconds.append(time.perf_counter() - began)
    if not seconds:
        yield f"steps     none are left of {config.steps:,}"
        return
    pace = sorted(seconds)[len(seconds) // 2]
    patches = config.batch / pace
    yield (
        f"steps     {pace:.3g} s each, {patches:.3g} patches a second on {trainer.device}, "
        f"{torch.get_num_threads()} threads (the median of {len(seconds)})"
    )
    peak = _peak(trainer.device)
    yield "memory    " + ("not known here" if peak is None else f"{peak / 2**30:.2g} GiB at most")
    left = config.steps - first
    took = timedelta(seconds=round(pace * left))
    yield f"run       {left:,} steps: about {took} without validation"
    yield f"output    {config.output}: nothing was written"


def _peak(device: torch.device) -> int | None:
    """Bytes of the device, or of this process on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == "darwin" else kib * 1024  # macOS counts bytes
