"""`c2d export`: models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A shipped model, a file or a folder.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file: .pth, .onnx or .pt2.")],
    format: Annotated[
        str | None,
        typer.Option(help="authors, onnx or torch-export; by default by the file's ending."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="img_size of the authors' network; their masks are made for it."),
    ] = None,
) -> None:
    """Write a model for other programs: its authors' code, ONNX Runtime, or torch.export."""
    from ..pretrained import exporting

    written = exporting.export(model, output, format, image_size=image_size)
    print(f"{model} -> {written}  {written.stat().st_size / 1e6:.1f} MB")
