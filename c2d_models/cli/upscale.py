"""`c2d upscale`: the arguments, the progress bar, what is said of each file and of all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..errors import UpscaleError
from . import clusters
from .messages import MISTAKE, report_bugs, unwind_when_terminated, warn

if TYPE_CHECKING:
    from ..ray_pool import Workers
    from ..upscaling.batch import FileOptions, Outcome, Report
    from ..upscaling.jobs import Job
    from ..upscaling.on_ray import Settings
    from ..upscaling.target import Target
    from ..upscaling.upscaler import Upscaler

SLOWER = 1.25  # times as long as float32; less may be chance
_SIZE, _FILES, _SPEED = "Size", "Files", "Model and speed"


def upscale(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Image files, folders of them, or - for stdin."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Output file, folder to mirror into, or - for stdout.",
        ),
    ] = None,
    suffix: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Appended to each name, such as _x4; without --output, next to the originals.",
            rich_help_panel=_FILES,
        ),
    ] = "",
    scale: Annotated[
        float | None,
        typer.Option(
            help="Any real number from 1 to 16, above 4 in two passes; without it, the model's "
            "own, or 4.",
            rich_help_panel=_SIZE,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Exact size instead: 1920x1080, 1920x, x1080.",
            rich_help_panel=_SIZE,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="As large as fits inside, undistorted.", rich_help_panel=_SIZE
        ),
    ] = None,
    long_side: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pixels of the longer side.", rich_help_panel=_SIZE),
    ] = None,
    stretch: Annotated[
        bool,
        typer.Option(
            "--stretch", help="Let --size change the aspect ratio.", rich_help_panel=_SIZE
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A name of `c2d models`, tiny, a file, or its folder.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", rich_help_panel=_SPEED)] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="float32|bfloat16|float16", rich_help_panel=_SPEED)
    ] = "float32",
    tile: Annotated[
        str,
        typer.Option(
            metavar="N|auto|0",
            help="Side of the tiles in input pixels; 0: none.",
            rich_help_panel=_SPEED,
        ),
    ] = "auto",
    format: Annotated[
        str,
        typer.Option(
            metavar="same|png|jpg|webp|tiff",
            help="Format of the files in a folder.",
            rich_help_panel=_FILES,
        ),
    ] = "same",
    quality: Annotated[
        int, typer.Option(help="Quality of JPEG and WebP, 1 to 100.", rich_help_panel=_FILES)
    ] = 95,
    lossless: Annotated[
        bool | None,
        typer.Option(
            "--lossless/--lossy",
            help="Write lossless or lossy WebP; by default, as the input.",
            show_default=False,
            rich_help_panel=_FILES,
        ),
    ] = None,
    metadata: Annotated[
        str,
        typer.Option(
            metavar="keep|strip",
            help="EXIF, XMP, text and so on; strip keeps the colour profile alone.",
            rich_help_panel=_FILES,
        ),
    ] = "keep",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse damaged files that most viewers show.", rich_help_panel=_FILES
        ),
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Refuse inputs that claim more pixels.", rich_help_panel=_FILES
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace outputs that exist; else they are skipped.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    ray: clusters.Address = None,
    workers: clusters.Count = None,
    cpus: clusters.Cpus = None,
    gpus: clusters.Gpus = None,
) -> None:
    """Make photographs larger: PNG, JPEG, WebP, TIFF and others.

    Metadata, colour profile, alpha and 16 bits are kept where the output format has them.

    JPEG has no alpha: there the picture is laid over white.

    Inputs are never overwritten.
    """
    if not 1 <= quality <= 100:
        raise UpscaleError(f"quality is {quality}; it must be from 1 to 100.")
    if metadata not in ("keep", "strip"):
        raise UpscaleError(f"metadata is {metadata}; use keep or strip.")
    if max_pixels is not None and max_pixels < 1:
        raise UpscaleError(f"max-pixels is {max_pixels}; it must be 1 or more.")
    target = _target(scale, size, fit, long_side, stretch)
    asked = clusters.workers(ray, workers, cpus, gpus)
    unwind_when_terminated()

    from ..images import image_file
    from ..upscaling import batch, jobs
    from ..upscaling.on_ray import Settings

    plan = jobs.plan(inputs, output, format, suffix)
    settings = Settings(target, model, device, dtype, tile)
    options = batch.FileOptions(
        quality, lossless, metadata, strict, max_pixels or image_file.MAX_PIXELS, overwrite
    )
    report = batch.Report(unread=plan.unread)
    with _bar(plan.jobs) as progress:
        for outcome in _outcomes(plan.jobs, settings, options, asked, progress):
            progress(outcome.job, 1.0)
            report.add(outcome)
            _tell(outcome, to_stderr=output == jobs.PIPE)
    _finish(report)


def _outcomes(
    jobs: list[Job],
    settings: Settings,
    options: FileOptions,
    workers: Workers | None,
    progress: Callable[[Job, float], None],
) -> Iterator[Outcome]:
    """Do the jobs, here or in workers; what is wrong with the settings is told first."""
    from ..ray_pool import RayPool
    from ..upscaling import batch, on_ray

    upscaler = settings.load() if workers is None else replace(settings, device="cpu").load()
    if (net := upscaler.models.asked) is not None and net.scale == 1:
        warn(f"{settings.model} restores pictures: they keep their size")
    if workers is None:
        if settings.dtype != "float32" and upscaler.device.type == "cpu":
            _warn_if_slower(upscaler, settings.dtype)
        yield from batch.upscale_files(jobs, upscaler, options, progress)
        return
    if any("-" in (str(job.source), str(job.target)) for job in jobs):
        raise UpscaleError("workers do not see standard input and output: leave out --ray.")
    with RayPool(workers, may_use_gpus=settings.device != "cpu") as pool:
        if settings.device.startswith("cuda") and not pool.gpus_each:
            raise UpscaleError(
                f"device is {settings.device}, but no node of the cluster has a GPU."
            )
        yield from on_ray.upscale_files(jobs, settings, options, pool, progress)


def _target(
    scale: float | None, size: str | None, fit: str | None, long_side: int | None, stretch: bool
) -> Target | None:
    """The size asked for; None for the model's own factor."""
    from ..upscaling.target import Target, parse_size

    if scale is None and size is None and fit is None and long_side is None:
        return None
    width, height = parse_size(size) if size is not None else (None, None)
    box = None
    if fit is not None:
        wide, high = parse_size(fit, "fit")
        if wide is None or high is None:
            raise UpscaleError(f"fit is {fit}; write width x height, such as 1920x1080.")
        box = (high, wide)
    return Target(scale, width, height, box, long_side, stretch)


def _warn_if_slower(upscaler: Upscaler, dtype: str) -> None:
    """Warn where half precision takes clearly longer than float32."""
    from ..upscaling import half_precision

    net = upscaler.models.network(upscaler.target.factor)
    times = half_precision.slowdown(net, upscaler.dtype, min(upscaler.target.factor or 4, 4))
    if times >= SLOWER:
        warn(
            f"float32 is faster on this processor: {dtype} took {times:.1f} times as long on a "
            "small tile."
        )


@contextmanager
def _bar(jobs: list[Job]) -> Iterator[Callable[[Job, float], None]]:
    """A progress bar on a terminal; gives what to tell a job and its fraction to."""
    screen = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    # A file's bytes stand for its pixels: good enough for an ETA, and known without opening it.
    weight = {id(job): job.source.stat().st_size if job.source.is_file() else 0 for job in jobs}
    reached = dict.fromkeys(weight, 0.0)
    with bar:
        task = bar.add_task("", total=max(sum(weight.values()), 1))

        def progress(job: Job, fraction: float) -> None:
            more = (fraction - reached[id(job)]) * weight[id(job)]
            reached[id(job)] = fraction
            name = job.source.name if fraction < 1 else f"{job.source.name} (saving)"
            bar.update(task, advance=more, description=name)

        yield progress


def _tell(outcome: Outcome, to_stderr: bool) -> None:
    """Print the outcome of one file."""
    job = outcome.job
    if outcome.failure is not None:
        warn(outcome.failure)
    elif outcome.written is None:
        print(f"{job.target} exists, skipped (--overwrite replaces it)")
    else:
        written = outcome.written
        for note in written.notes:
            warn(f"{job.name}: {note}")
        height, width = written.size
        target, stream = ("standard output", sys.stderr) if to_stderr else (job.target, sys.stdout)
        text = f"{job.name} -> {target}  {width}x{height}, {outcome.seconds:.1f} s"
        print(text + (f", {written.by}" if written.by else ""), file=stream)


def _finish(report: Report) -> None:
    """The summary of more than one file, and the exit code of what failed."""
    alone = len(report.written) + len(report.skipped) + len(report.failed) == 1
    if not alone or report.unread:
        print(report.summary())
    if report.log is not None:
        raise typer.Exit(report_bugs(report.log, alone))
    if report.failed:
        raise typer.Exit(MISTAKE)
