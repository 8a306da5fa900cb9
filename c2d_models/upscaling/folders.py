"""Files and folders made larger: which file goes where, what is left alone, and what failed."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import ImageError, UpscaleError, sentence
from ..images import image_file
from .upscaler import Upscaler


@dataclass
class Job:
    """One file to read and the one to write; `problem` is why it cannot be done."""

    source: Path
    target: Path
    problem: str | None = None


@dataclass
class Report:
    """What became of a run over files.

    Attributes:
        written: (source, target, (H_out, W_out), seconds) of each new file.
        skipped: targets that existed.
        failures: (source, one sentence).
        log: a file with the tracebacks of those failures that were bugs, or None.
    """

    written: list[tuple[Path, Path, tuple[int, int], float]] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)
    log: Path | None = None

    def fail(self, source: Path, error: Exception) -> None:
        """Note why a file failed. What is not a refusal is a bug: its traceback goes to `log`."""
        told = sentence(error)
        if told is None and isinstance(error, OSError):
            told = f"{source}: {error.strerror or error}."
        if told is None:
            told = f"{source} met a bug ({type(error).__name__}: {error})."
            self._record(source, error)
        self.failures.append((source, told))

    def _record(self, source: Path, error: Exception) -> None:
        if self.log is None:
            handle, name = tempfile.mkstemp(".log", "c2d-")
            os.close(handle)
            self.log = Path(name)
        lines = "".join(traceback.format_exception(error))
        with open(self.log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{source}\n{lines}\n")


def plan_jobs(inputs: Sequence[str | Path], output: str | Path, format: str = "same") -> list[Job]:
    """Where each input goes.

    One file goes to `output` if that has an ending and is no folder; everything else into the
    folder `output`, folders recursively and mirrored (several by their own names). `format`
    "same" keeps each file's ending (PNG for GIF); for a single output file its own ending decides.

    Raises:
        UpscaleError: a folder holds no image, or the output cannot be a folder or not be written.
        ImageError: the output's ending is none that can be written.
    """
    sources = [Path(item) for item in inputs]
    if format not in ("same", *image_file.FORMATS):
        raise UpscaleError(f"format is {format}; use same, {', '.join(image_file.FORMATS)}.")
    is_folder = os.fspath(output).endswith(("/", os.sep))
    output = Path(output)
    if (
        len(sources) == 1
        and not sources[0].is_dir()
        and output.suffix
        and not (is_folder or output.is_dir())
    ):
        asked = image_file.format_of(output)
        if format not in ("same", asked):
            raise UpscaleError(f"{output} asks for {asked}, but format for {format}; choose one.")
        jobs = [Job(sources[0], output)]
    else:
        if output.exists() and not output.is_dir():
            raise UpscaleError(f"{output} is a file; give a folder for the output.")
        jobs = []
        for source in sources:
            if not source.is_dir():
                jobs.append(Job(source, output / _renamed(source.name, format)))
                continue
            base = output / source.resolve().name if len(sources) > 1 else output
            found = list(_walk(source, output))
            if not found:
                raise UpscaleError(f"{source} holds no image (PNG, JPEG, WebP, TIFF or GIF).")
            for relative in found:
                target = base / relative.parent / _renamed(relative.name, format)
                jobs.append(Job(source / relative, target))
    _refuse_unwritable(output if output.is_dir() else output.parent)
    _refuse_clashes(jobs)
    return jobs


def upscale_files(
    jobs: Iterable[Job],
    upscaler: Upscaler,
    *,
    quality: int = 95,
    overwrite: bool = False,
    progress: Callable[[Job, float], None] = lambda job, fraction: None,
) -> Iterator[Report]:
    """Do the jobs; yields the same growing report after each.

    Whatever goes wrong with one file, a bug of ours too, is noted and does not stop the rest.

    Arguments:
        quality: of JPEG and WebP, 1 to 100.
        overwrite: replace targets that exist; otherwise they are skipped.
        progress: called with a job and the fraction of it that is done.
    """
    report = Report()
    for job in jobs:
        started = time.perf_counter()
        try:
            if job.problem is not None:
                raise ImageError(job.problem)
            if job.target.exists() and not overwrite:
                report.skipped.append(job.target)
            else:
                size = upscale_file(
                    job.source,
                    job.target,
                    upscaler,
                    quality=quality,
                    progress=partial(progress, job),
                )
                seconds = time.perf_counter() - started
                report.written.append((job.source, job.target, size, seconds))
        except Exception as error:
            report.fail(job.source, error)
        yield report


def upscale_file(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    quality: int = 95,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[int, int]:
    """Enlarge one file into another, replacing it; returns (H_out, W_out).

    Raises:
        C2DError: as `upscale`; nothing is left behind.
    """
    image = image_file.read(source)
    height, width, _ = image.pixels.shape
    out_height, out_width = upscaler.output_size(height, width)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"cannot write {target}: {error.strerror or error}.") from None
    with image_file.Writer(target, out_height, out_width, like=image, quality=quality) as writer:
        upscaler.run(
            image.pixels, writer.write, writer.dtype, folder=target.parent, progress=progress
        )
        writer.finish()
    return out_height, out_width


def _walk(folder: Path, output: Path) -> Iterator[Path]:
    """Images below a folder, relative to it, sorted; hidden ones and those in `output` left out."""
    for base, folders, names in os.walk(folder):
        inside = Path(base)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _same(inside / name, output)
        )
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in image_file.INPUT_SUFFIXES:
                yield (inside / name).relative_to(folder)


def _renamed(name: str, format: str) -> str:
    """A file name with the ending of `format`, unless it has it ("same": GIF becomes PNG)."""
    path = Path(name)
    if format == "same":
        return name if path.suffix.lower() in image_file.OUTPUT_SUFFIXES else f"{path.stem}.png"
    with contextlib.suppress(ImageError):
        if image_file.format_of(path) == format:
            return name
    return f"{path.stem}.{format}"


def _refuse_unwritable(folder: Path) -> None:
    """UpscaleError if the folder, or the one it would be made in, does not take files."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UpscaleError(f"{folder} is a file, so nothing can be written below it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UpscaleError(f"the folder {folder} cannot be written to; choose another output.")


def _refuse_clashes(jobs: list[Job]) -> None:
    """Mark jobs whose target is an input (also by a link), or another job's target."""
    inputs = {_identity(job.source): job.source for job in jobs if job.source.exists()}
    taken: dict[str, Path] = {}
    for job in jobs:
        key = os.path.normcase(os.path.abspath(job.target))
        input_there = inputs.get(_identity(job.target)) if job.target.exists() else None
        if input_there is not None:
            job.problem = (
                f"{job.target} is the input {input_there}, and inputs are never overwritten: "
                "choose another output."
            )
        elif key in taken:
            job.problem = (
                f"{job.source} would be written to {job.target}, like {taken[key]}: rename one, or "
                "choose another format."
            )
        taken.setdefault(key, job.source)


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and os.path.samefile(a, b)
