"""Files made larger by Ray workers: the jobs of `batch`, any number of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ..files import remove_leftovers
from ..ray_pool import TRIES, Progress, RayPool, Task, WorkerDied
from .batch import FileOptions, Outcome, upscale_job
from .jobs import Job
from .target import Target
from .upscaler import Upscaler


@dataclass(frozen=True)
class Settings:
    """Settings by which each worker loads its `Upscaler`; arguments as in `Upscaler.load`."""

    target: Target | None = None
    model: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    tile: int | str | None = None

    def load(self) -> Upscaler:
        """The upscaler, on this machine."""
        return Upscaler.load(self.target, self.model, self.device, self.dtype, self.tile)


def upscale_files(
    jobs: Sequence[Job],
    settings: Settings,
    options: FileOptions,
    pool: RayPool,
    progress: Callable[[Job, float], None] = lambda job, fraction: None,
) -> Iterator[Outcome]:
    """Do the jobs, the largest files first, and give each outcome as it comes.

    The files are those that `batch.upscale_files` writes, byte for byte, with as many threads and
    the same tiles: automatic ones depend on free memory below 2.5 GiB a worker, and on a GPU's.
    """
    _tidy(jobs)
    device = "cuda" if pool.gpus_each else "cpu"
    build = partial(_upscaling, settings, device, options)
    tasks = [Task(job, _size(job)) for job in jobs]
    for job, result in pool.run(build, tasks, progress):
        if isinstance(result, WorkerDied):
            result = Outcome(job, failure=f"{job.name}: {TRIES} workers died at it; out of memory?")
        result.job = job  # the caller's own, not the copy that came back
        yield result
    _tidy(jobs)  # after workers that were killed


def _upscaling(
    settings: Settings, device: str, options: FileOptions
) -> Callable[[Job, Progress], Outcome]:
    """Build the function by which a worker does jobs."""
    upscaler = Upscaler.load(settings.target, settings.model, device, settings.dtype, settings.tile)

    def work(job: Job, progress: Progress) -> Outcome:
        return upscale_job(job, upscaler, options, progress)

    return work


def _tidy(jobs: Sequence[Job]) -> None:
    """Remove what processes of this machine have left beside the outputs."""
    for folder in {job.target.parent for job in jobs if job.target.parent.is_dir()}:
        remove_leftovers(folder)


def _size(job: Job) -> float:
    """Bytes, which stand for pixels."""
    return float(job.source.stat().st_size) if job.source.is_file() else 0.0
