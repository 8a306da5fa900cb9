"""Photographs enlarged one after the other in a thread, with the remaining time."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from ..upscaling.batch import FileOptions, Outcome, upscale_job
from ..upscaling.jobs import Job
from ..upscaling.upscaler import Upscaler

_TICK = 0.2  # seconds between two looks at the thread


@dataclass
class Status:
    """How far a queue is.

    Attributes:
        outcomes: of the files that are done, in order.
        name: of the file that is being made; empty at the end.
        fraction: of all the work, in [0, 1].
        seconds: since the start.
        remaining: seconds, or None while too little is done to tell.
        stopped: whether it was told to stop.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    name: str = ""
    fraction: float = 0.0
    seconds: float = 0.0
    remaining: float | None = None
    stopped: bool = False


class _Stopped(BaseException):
    """Unwinds an enlargement; not an Exception, which the batch would note as a failure."""


def run(
    jobs: Sequence[Job], upscaler: Upscaler, options: FileOptions, stop: threading.Event
) -> Generator[Status, None, None]:
    """Do the jobs, and tell several times a second how far they are.

    A caller that goes away, which closes the generator, stops the work as `stop` does: what was
    begun leaves nothing behind.
    """
    status = Status()
    started = time.monotonic()
    sizes = [job.source.stat().st_size if job.source.is_file() else 0 for job in jobs]
    total = max(sum(sizes), 1)
    try:
        for number, job in enumerate(jobs):
            before, share = sum(sizes[:number]) / total, sizes[number] / total
            status.name = job.source.name
            for fraction, outcome in _follow(job, upscaler, options, stop):
                status.fraction = before + fraction * share
                status.seconds = time.monotonic() - started
                if status.fraction > 0.02:
                    status.remaining = status.seconds * (1 / status.fraction - 1)
                if outcome is not None:
                    status.outcomes.append(outcome)
                yield status
            if stop.is_set():
                break
    finally:
        stop.set()
    status.name, status.stopped = "", len(status.outcomes) < len(jobs)
    yield status


def _follow(
    job: Job, upscaler: Upscaler, options: FileOptions, stop: threading.Event
) -> Iterator[tuple[float, Outcome | None]]:
    """(fraction, None) while a thread does the job, then (1, outcome), or nothing if stopped."""
    reached = 0.0
    outcomes: list[Outcome] = []
    failures: list[BaseException] = []

    def note(fraction: float) -> None:
        nonlocal reached
        if stop.is_set():
            raise _Stopped
        reached = fraction

    def work() -> None:
        try:
            outcomes.append(upscale_job(job, upscaler, options, note))
        except _Stopped:
            pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="c2d-page", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_TICK)
            yield reached, None
    finally:
        if thread.is_alive():  # the caller has gone
            stop.set()
            thread.join()
    if failures:
        raise failures[0]
    if outcomes:
        yield 1.0, outcomes[0]
