"""`c2d eval`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ..errors import EvaluationError
from . import clusters


def evaluate(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...", help="HR images; subfolders `HR` and `LR_bicubic` are used."
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
        typer.Option(
            metavar="papers|liif", help="PSNR of rounded images, or of unrounded ones, as LIIF's."
        ),
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
    ray: clusters.Address = None,
    workers: clusters.Count = None,
    cpus: clusters.Cpus = None,
    gpus: clusters.Gpus = None,
) -> None:
    """Score models against bicubic: PSNR and SSIM of luma, as the papers report them."""
    square = None if crop is None else _parse_crop(crop)

    asked = clusters.workers(ray, workers, cpus, gpus)

    from .. import devices
    from ..evaluation import run as evaluation

    # On a cluster "auto" is what its nodes have.
    place = None if asked and device == "auto" else devices.choose_device(device)
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
        workers=asked,
    )


def _parse_crop(text: str) -> tuple[int, int, int]:
    """ "40,30,64" to (40, 30, 64)."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(n.isascii() and n.isdecimal() for n in numbers):
        raise EvaluationError(
            f"crop is {text}; write left, top and side in HR pixels, such as 40,30,64."
        )
    left, top, side = map(int, numbers)
    return left, top, side
