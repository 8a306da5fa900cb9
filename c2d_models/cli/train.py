"""`c2d train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from ..training import trainer

    trainer.run(config, override or [], resume)
