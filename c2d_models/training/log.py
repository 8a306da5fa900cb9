"""The display of a training run: a progress bar, a line per validation, TensorBoard's curves."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

_EVERY = 10  # steps between TensorBoard's points: one per step would fill the disk in a long run


@dataclass
class RunningMean:
    """The mean of what was added since it was last emptied."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count, self.total = self.count + 1, self.total + value

    def empty(self) -> None:
        self.count, self.total = 0, 0.0

    @property
    def value(self) -> float:
        return self.total / self.count


class TrainingLog:
    """Shows the steps of a run from `step` to `total`; a context manager.

    Args:
        folder: of the run; TensorBoard's files go into its subfolder `tensorboard`.
        step: done so far. TensorBoard drops what an earlier process logged after it.
        total: steps of the whole run.
        console: where bar and lines go.
        losses: of the run's steps since its last validation; `step` adds to it, `validation`
            empties it.
        shown: False shows and writes nothing (all processes of a run but the first).
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        total: int,
        console: Console,
        losses: RunningMean,
        shown: bool = True,
    ):
        self.console, self.shown = console, shown
        whole = Column(no_wrap=True)  # where there is no room, the bar shrinks
        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(table_column=whole),
            TextColumn("ETA"),
            TimeRemainingColumn(table_column=whole),
            TextColumn(
                "{task.fields[speed]:.3g}/s  loss {task.fields[loss]:.4f}  {task.fields[scores]}",
                table_column=whole,
            ),
            console=console,
            disable=not shown,
        )
        self.task = self.progress.add_task(
            "", total=total, completed=step, speed=0.0, loss=math.nan, scores=""
        )
        self.losses = losses
        self.recent = RunningMean()  # losses since TensorBoard's last point
        self.began = self.recent_began = time.perf_counter()
        self.report = threading.excepthook
        threading.excepthook = self._report
        self.writer = self._open(folder, step) if shown else None

    def __enter__(self) -> TrainingLog:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()
        if self.writer is not None:
            try:
                self.writer.close()
            except OSError as full:
                self._give_up(full)
        threading.excepthook = self.report

    def say(self, *sentences: str, sep: str = " ") -> None:
        """Print, above the bar."""
        if self.shown:
            # they may hold file names: no markup, no line ends inside
            self.console.print(*sentences, sep=sep, markup=False, soft_wrap=True)

    def step(self, step: int, loss: float, lr: float) -> float:
        """Show that step number `step` is done; returns the seconds it took."""
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        self.losses.add(loss)
        self.recent.add(loss)
        self.progress.update(self.task, completed=step, speed=1 / seconds, loss=self.losses.value)
        if step % _EVERY == 0:
            speed = self.recent.count / (now - self.recent_began)
            self._write(step, {"loss": self.recent.value, "lr": lr, "steps/s": speed})
            self.recent.empty()
            self.recent_began = now
        return seconds

    def validation(self, step: int, scores: dict[str, float]) -> dict[str, float]:
        """Show scores (dB); returns them with the step and the mean loss since the last ones."""
        entry = {"step": step, "loss": round(self.losses.value, 5)}
        self.losses.empty()
        entry |= {name: round(value, 3) for name, value in scores.items()}
        text = " ".join(f"{name[5:]} {value:.2f}" for name, value in scores.items())
        self.progress.update(self.task, scores=f"{text} dB")
        self.say(json.dumps(entry))
        self._write(step, {f"validation/{name}": value for name, value in scores.items()})
        return entry

    def pictures(self, step: int, draw: Callable[[], dict[str, Tensor]]) -> None:
        """Pictures (3, H, W) in [0, 1] by name for TensorBoard; drawn only if it is there."""
        if self.writer is None:
            return
        try:
            for name, picture in draw().items():
                self.writer.add_image(name, picture, step)
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def _open(self, folder: Path, step: int) -> SummaryWriter | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("no TensorBoard curves: pip install tensorboard adds them")
            return None
        try:
            return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        except OSError as error:
            self._give_up(error)
            return None

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        if self.writer is None:
            return
        try:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def _report(self, failure: threading.ExceptHookArgs) -> None:
        """No traceback of TensorBoard's own thread at a full disk: its next call tells of it."""
        own = type(failure.thread).__module__.startswith("tensorboard")
        if not (own and isinstance(failure.exc_value, OSError)):
            self.report(failure)

    def _give_up(self, error: OSError) -> None:
        """Curves are worth less than the run: go on without them."""
        self.say(f"no more TensorBoard curves: {error.strerror or error}")
        self.writer = None
