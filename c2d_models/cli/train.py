"""`c2d train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, as in configs/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print data, parameters, memory and time, estimated from five steps."
        ),
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value in the file; may be repeated."
        ),
    ] = None,
) -> None:
    """Train a network as a configuration says."""
    from ..training import config as configuration
    from ..training import rehearsal, trainer

    if dry_run:
        for line in rehearsal.rehearse(configuration.load_config(config, override), resume):
            print(line)
        return
    trainer.run(config, override or [], resume)
