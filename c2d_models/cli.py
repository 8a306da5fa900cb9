"""The command `c2d`: upscale, eval, train, models, info.

A mistake in what was asked ends in one sentence on stderr and exit code 2, a bug in its traceback
and exit code 1, Ctrl-C in 130. Torch is imported by the commands that compute, so that `c2d --help`
answers at once.
"""

from __future__ import annotations

import signal
import sys
import traceback
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .errors import EvaluationError, ModelFileError, UpscaleError, sentence

if TYPE_CHECKING:
    from .pretrained.loading import ModelInfo
    from .upscaling.folders import Job, Report
    from .upscaling.upscaler import Upscaler

BUG, MISTAKE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
_BUG = "this is a bug in c2d-isr: please report it with"
SLOWER = 1.25  # times as long as float32; less may be chance

app = typer.Typer(
    name="c2d",
    help="Make photographs larger, by any scale from 1 to 4.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, return its exit code; the one place where errors become sentences."""
    try:
        code = app(arguments, prog_name="c2d", standalone_mode=False)
        code = code if isinstance(code, int) else 0
        # typer answers Ctrl-C itself, by its code alone or, in older versions, by an Abort
        return _complain("interrupted.", INTERRUPTED) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted.", INTERRUPTED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # a usage error of typer's
        told = usage() if usage else sentence(error)
        if told is not None:
            return _complain(told, MISTAKE)
        traceback.print_exception(error)
        return _complain(f"{_BUG} the lines above.", BUG)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"c2d {_version()}")
        raise typer.Exit


@app.command()
def upscale(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Image files, or folders of them.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Output file, or folder to mirror into."
        ),
    ],
    scale: Annotated[
        float | None,
        typer.Option(help="Any real number from 1 to 4; without it, the model's, or 4."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Exact size instead; each axis grows by its own 1 to 4."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A name of `c2d models`, a file, or its folder."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="float32|bfloat16|float16")] = "float32",
    tile: Annotated[
        str, typer.Option(metavar="N|auto|0", help="Side of the tiles in input pixels; 0: none.")
    ] = "auto",
    format: Annotated[
        str,
        typer.Option(metavar="same|png|jpg|webp|tiff", help="Format of the files in a folder."),
    ] = "same",
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP, 1 to 100.")] = 95,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that exist; else they are skipped.")
    ] = False,
) -> None:
    """Make photographs larger: PNG, JPEG, WebP and TIFF.

    Profile, EXIF, alpha and 16 bits are kept where the output format has them.

    JPEG has no alpha: there the picture is laid over white.

    Inputs are never overwritten.
    """
    if not 1 <= quality <= 100:
        raise UpscaleError(f"quality is {quality}; it must be from 1 to 100.")
    pixels = None if size is None else _parse_size(size)
    signal.signal(signal.SIGTERM, _terminate)

    from .upscaling import folders
    from .upscaling import upscaler as upscaling

    jobs = folders.plan_jobs(inputs, output, format)
    upscaler = upscaling.Upscaler.load(scale, pixels, model, device, dtype, tile)
    if dtype != "float32" and upscaler.device.type == "cpu":
        _warn_if_slower(upscaler, dtype)
    report = _run_jobs(jobs, upscaler, quality, overwrite)
    if len(jobs) > 1:
        typer.echo(_summary(report))
    if report.log is not None:
        raise typer.Exit(_report_bugs(report.log, alone=len(jobs) == 1))
    if report.failures:
        raise typer.Exit(MISTAKE)


@app.command("eval")
def evaluate(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...", help="HR images; `HR` and `LR_bicubic` below are used."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="Repeat for several; without it, bicubic alone."),
    ] = None,
    scale: Annotated[
        list[float] | None,
        typer.Option(help="Repeat for several; without it, the models' own, or 2, 3 and 4."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A .json, .md or .csv file, or a folder for all three."
        ),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Mean over 8 flips and rotations.")
    ] = False,
    rule: Annotated[
        str,
        typer.Option(metavar="papers|liif", help="PSNR of rounded images, or not, as LIIF's."),
    ] = "papers",
    pictures: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Draw PSNR over GMACs, crops and attribution maps."),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(metavar="X,Y,SIZE", help="HR pixels to show; without it, the most detailed."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
) -> None:
    """Score models against bicubic: PSNR and SSIM of luma, as the papers report them."""
    square = None if crop is None else _parse_crop(crop)

    from . import devices
    from .evaluation import run as evaluation

    place = devices.choose_device(device)
    evaluation.run(
        model or [],
        folders,
        scales=scale,
        output=output,
        ensemble=ensemble,
        device=place,
        console=Console(),
        rule=rule,
        pictures=pictures,
        crop=square,
    )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, as in configs/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the output folder.")
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file; repeat."),
    ] = None,
) -> None:
    """Train a network as a configuration says."""
    from .training import trainer

    trainer.run(config, override or [], resume)


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="Show how this one was trained.")
    ] = None,
) -> None:
    """List the models that come with the package, with their sizes and scores."""
    from .pretrained import loading

    if name is not None:
        Console().print_json(data=loading.read_record(name))
        return
    shipped = loading.list_models()
    if not shipped:
        raise ModelFileError("no model comes with this installation: train one with c2d train.")
    Console().print(_models_table(shipped))


@app.command()
def info() -> None:
    """Show versions, memory, and which kernel each operator would use here."""
    import pyvips

    import c2d_kernels

    from .devices import available_memory

    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    typer.echo(f"c2d        {_version()}, Python {sys.version.split()[0]}, libvips {libvips}")
    typer.echo(f"memory     {available_memory() / 2**30:.1f} GiB free")
    typer.echo(c2d_kernels.info())


def _models_table(shipped: list[ModelInfo]) -> Table:
    """The models, a row for each scale at which one was scored, then bicubic."""
    from .evaluation import results as scores

    psnr: dict[str, dict[float, dict[str, float]]] = {info.name: {} for info in shipped}
    bicubic = psnr.setdefault(scores.BICUBIC, {})
    for info in shipped:
        for row in scores.kept(info.path):
            by_scale = bicubic if row["model"] == scores.BICUBIC else psnr[info.name]
            by_scale.setdefault(row["scale"], {})[row["dataset"]] = row["psnr_y"]
    sets = {name for by_scale in psnr.values() for row in by_scale.values() for name in row}
    ordered = sorted(sets, key=scores.rank)

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("name", "scale"):
        table.add_column(heading)
    for heading in ("parameters", "file", *(["at"] if sets else []), *ordered):
        table.add_column(heading, justify="right")
    if sets:
        table.caption = "PSNR of luma in dB, means over the images, by the papers' rule"
    facts = {
        info.name: (
            info.name,
            "1 to 4" if info.scale is None else f"{info.scale}",
            f"{info.params:,}",
            f"{info.size_bytes / 1e6:.1f} MB",
        )
        for info in shipped
    }
    for name, by_scale in psnr.items():
        cells = facts.get(name, (name, "", "", ""))
        for scale, row in sorted(by_scale.items()):
            values = (f"{row[each]:.2f}" if each in row else "" for each in ordered)
            table.add_row(*cells, f"x{scale:g}", *values)
            cells = ("", "", "", "")
        if not by_scale and name in facts:
            table.add_row(*cells)
    return table


def _warn_if_slower(upscaler: Upscaler, dtype: str) -> None:
    """One sentence where a half type takes clearly longer than float32."""
    from .upscaling import half_precision

    times = half_precision.slowdown(upscaler.net, upscaler.dtype, upscaler.scale or 4)
    if times >= SLOWER:
        typer.echo(
            f"c2d: float32 is faster on this processor: {dtype} took {times:.1f} times as long on "
            "a small tile.",
            err=True,
        )


def _run_jobs(jobs: list[Job], upscaler: Upscaler, quality: int, overwrite: bool) -> Report:
    """Do the jobs under a progress bar; each result is printed as it comes."""
    from .upscaling import folders

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
    weights = [job.source.stat().st_size if job.source.is_file() else 0 for job in jobs]
    report = folders.Report()
    with bar:
        task = bar.add_task(jobs[0].source.name, total=max(sum(weights), 1))
        before = dict(zip(map(id, jobs), _running_sums(weights), strict=True))
        weight = dict(zip(map(id, jobs), weights, strict=True))

        def progress(job: Job, fraction: float) -> None:
            done = before[id(job)] + fraction * weight[id(job)]
            name = job.source.name if fraction < 1 else f"{job.source.name} (saving)"
            bar.update(task, completed=done, description=name)

        shown = [0, 0, 0]
        for report in folders.upscale_files(
            jobs, upscaler, quality=quality, overwrite=overwrite, progress=progress
        ):
            for source, target, (height, width), seconds in report.written[shown[0] :]:
                typer.echo(f"{source} -> {target}  {width}x{height}, {seconds:.1f} s")
            for target in report.skipped[shown[1] :]:
                typer.echo(f"{target} exists, skipped (--overwrite replaces it)")
            for _, told in report.failures[shown[2] :]:
                _complain(told, MISTAKE)
            shown = [len(report.written), len(report.skipped), len(report.failures)]
    return report


def _running_sums(values: list[int]) -> list[int]:
    """The sum of all values before each."""
    sums, total = [], 0
    for value in values:
        sums.append(total)
        total += value
    return sums


def _summary(report: Report) -> str:
    counts = [f"{len(report.written)} written", f"{len(report.skipped)} skipped"]
    counts.append(f"{len(report.failures)} failed")
    names = [str(source) for source, _ in report.failures]
    return ", ".join(counts) + (": " + ", ".join(names) if names else "")


def _parse_size(text: str) -> tuple[int, int]:
    """ "1920x1080" to (1080, 1920), (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise UpscaleError(f"size is {text}; write width x height, such as 1920x1080.")
    return int(height), int(width)


def _parse_crop(text: str) -> tuple[int, int, int]:
    """ "40,30,64" to (40, 30, 64)."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(n.isascii() and n.isdecimal() for n in numbers):
        raise EvaluationError(
            f"crop is {text}; write left, top and side in HR pixels, such as 40,30,64."
        )
    left, top, side = map(int, numbers)
    return left, top, side


def _report_bugs(log: Path, alone: bool) -> int:
    """Ask for a report with the tracebacks in `log`; those of a single file are shown instead."""
    if not alone:
        return _complain(f"{_BUG} the file {log}.", BUG)
    sys.stderr.write(log.read_text(encoding="utf-8"))
    log.unlink()
    return _complain(f"{_BUG} the lines above.", BUG)


def _complain(told: str, code: int) -> int:
    end = "" if told.endswith((".", "?")) else "."
    print(f"c2d: {told}{end}", file=sys.stderr)
    return code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that temporary files go."""
    raise SystemExit(TERMINATED)


def _version() -> str:
    try:
        return metadata.version("c2d-isr")
    except metadata.PackageNotFoundError:
        return "from source, not installed"


if __name__ == "__main__":
    sys.exit(main())
