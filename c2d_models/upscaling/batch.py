"""Files made larger, one after the other, whatever happens to one of them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import ImageError, sentence
from ..images import image_file
from .clips import upscale_clip
from .jobs import PIPE, Job, Written, is_clip
from .upscaler import Progress, Upscaler


@dataclass(frozen=True)
class FileOptions:
    """How files are read and written.

    Attributes:
        quality: of JPEG and WebP, 1 to 100.
        lossless: of WebP; None: as the input.
        metadata: "keep", or "strip" for the colour profile alone.
        strict: refuse damaged files that most viewers show.
        max_pixels: of an input; one that claims more is refused.
        overwrite: replace outputs that exist; otherwise they are skipped.
    """

    quality: int = 95
    lossless: bool | None = None
    metadata: str = "keep"
    strict: bool = False
    max_pixels: int = image_file.MAX_PIXELS
    overwrite: bool = False


@dataclass
class Outcome:
    """The outcome of one job: a file, a failure, or neither if the job was skipped.

    Attributes:
        job: the job.
        written: the new file.
        seconds: it took.
        failure: one sentence.
        traceback: of a failure that is a bug.
    """

    job: Job
    written: Written | None = None
    seconds: float = 0.0
    failure: str | None = None
    traceback: str | None = None

    def fail(self, error: Exception) -> None:
        """Note why the job failed. What is not a refusal is a bug."""
        self.failure = sentence(error)
        if self.failure is None and isinstance(error, OSError):
            self.failure = f"{self.job.name}: {error.strerror or error}."
        if self.failure is None:
            self.failure = f"{self.job.name} met a bug ({type(error).__name__}: {error})."
            self.traceback = "".join(traceback.format_exception(error))


@dataclass
class Report:
    """The outcomes of a run, counted.

    Attributes:
        written, skipped, failed: jobs by their outcome.
        unread: (path, why) of pictures and folders that were left out.
        log: a file with the tracebacks of those failures that were bugs, or None.
    """

    written: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)
    log: Path | None = None

    def add(self, outcome: Outcome) -> None:
        """Count an outcome; the traceback of a bug goes to `log`."""
        if outcome.failure is not None:
            self.failed.append(outcome.job)
        else:
            (self.written if outcome.written else self.skipped).append(outcome.job)
        if outcome.traceback is not None:
            if self.log is None:
                handle, name = tempfile.mkstemp(".log", "c2d-")
                os.close(handle)
                self.log = Path(name)
            with open(self.log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{outcome.job.name}\n{outcome.traceback}\n")

    def summary(self) -> str:
        """ "3 written, 1 skipped, 1 failed: a.png; 2 not read: b.heic, c.heic"."""
        counts = (
            f"{len(self.written)} written, {len(self.skipped)} skipped, {len(self.failed)} failed"
        )
        told = counts + _names([job.name for job in self.failed])
        if self.unread:
            told += f"; {len(self.unread)} not read"
            told += _names(
                [f"{path} ({why})" if why[0] != "." else str(path) for path, why in self.unread]
            )
        return told


def upscale_files(
    jobs: Sequence[Job],
    upscaler: Upscaler,
    options: FileOptions | None = None,
    progress: Callable[[Job, float], None] = lambda job, fraction: None,
) -> Iterator[Outcome]:
    """Do the jobs, each when its outcome is asked for.

    Whatever goes wrong with one file, a bug of ours too, is noted and does not stop the rest. What
    a run that was killed has left beside the outputs is removed.

    Arguments:
        jobs: of `jobs.plan`.
        upscaler: does the work.
        options: of the files.
        progress: called with a job and the fraction of it that is done.
    """
    options = options or FileOptions()
    for folder in {job.target.parent for job in jobs if job.target.parent.is_dir()}:
        image_file.remove_leftovers(folder)
    for job in jobs:
        yield upscale_job(job, upscaler, options, partial(progress, job))


def upscale_job(
    job: Job,
    upscaler: Upscaler,
    options: FileOptions,
    progress: Progress = lambda fraction: None,
) -> Outcome:
    """Do one job; whatever goes wrong, a bug of ours too, is in its outcome."""
    progress(0.0)
    outcome = Outcome(job)
    started = time.perf_counter()
    try:
        if job.problem is not None:
            raise ImageError(job.problem)
        if str(job.source) != PIPE and not job.source.exists():
            raise ImageError(f"{job.source} does not exist.")
        if options.overwrite or str(job.target) == PIPE or not job.target.exists():
            outcome.written = upscale_file(job, upscaler, options, progress)
    except Exception as error:
        outcome.fail(error)
    outcome.seconds = time.perf_counter() - started
    return outcome


def upscale_file(
    job: Job,
    upscaler: Upscaler,
    options: FileOptions | None = None,
    progress: Progress = lambda fraction: None,
) -> Written:
    """Enlarge a picture or a clip into another file, replacing that.

    Raises:
        C2DError: as `upscale`; nothing is left behind.
    """
    options = options or FileOptions()
    if is_clip(job.source):
        return upscale_clip(
            job.source,
            job.target,
            upscaler,
            quality=100 if options.lossless else options.quality,
            metadata=options.metadata,
            max_pixels=options.max_pixels,
            progress=progress,
        )
    strict, most = options.strict, options.max_pixels
    if str(job.source) == PIPE:
        data = sys.stdin.buffer.read()
        image = image_file.read_bytes(data, job.name, strict=strict, max_pixels=most)
    else:
        image = image_file.read(job.source, strict=strict, max_pixels=most)
    height, width, _ = image.pixels.shape
    size = upscaler.output_size(height, width)
    if str(job.target) == PIPE:
        format = image.format if image.format in image_file.FORMATS else "png"
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, f"output.{format}")
            _write(target, image, size, upscaler, options, progress)
            with open(target, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    else:
        _write(job.target, image, size, upscaler, options, progress)
    models = upscaler.chosen(height, width, image.lossy)
    return Written(size, image.notes, image.lossy, models)


def _write(
    target: Path,
    image: image_file.ImageData,
    size: tuple[int, int],
    upscaler: Upscaler,
    options: FileOptions,
    progress: Progress,
) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"cannot write {target}: {error.strerror or error}.") from None
    with image_file.Writer(
        target,
        *size,
        like=image,
        quality=options.quality,
        lossless=options.lossless,
        metadata=options.metadata,
    ) as writer:
        upscaler.run(
            image.pixels,
            image.alpha,
            writer.write,
            writer.dtype,
            lossy=image.lossy,
            folder=target.parent,
            progress=progress,
        )
        writer.finish()


def _names(names: list[str]) -> str:
    return ": " + ", ".join(names) if names else ""
