"""`c2d models` and `c2d info`: what is installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..errors import ModelFileError
from ..version import version

if TYPE_CHECKING:
    from ..pretrained.loading import ModelInfo


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="Show how this one was trained.")
    ] = None,
) -> None:
    """List the models that come with the package: sizes, scores, and what each is for."""
    from ..pretrained import loading

    if name is not None:
        Console().print_json(data=loading.read_record(name))
        return
    shipped = loading.list_models()
    if not shipped:
        raise ModelFileError("no model comes with this installation: train one with c2d train.")
    Console().print(_models_table(shipped))
    for each in shipped:
        if each.name in loading.PURPOSES:
            typer.echo(f"{each.name}: {loading.PURPOSES[each.name]}")


def info() -> None:
    """Show versions, memory, and which kernel each operator would use here."""
    import pyvips

    import c2d_kernels

    from ..devices import available_memory

    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    typer.echo(f"c2d        {version()}, Python {sys.version.split()[0]}, libvips {libvips}")
    typer.echo(f"memory     {available_memory() / 2**30:.1f} GiB free")
    typer.echo(c2d_kernels.info())


def _models_table(shipped: list[ModelInfo]) -> Table:
    """The models, a row for each scale at which one was scored, then bicubic."""
    from ..evaluation import results as scores

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
