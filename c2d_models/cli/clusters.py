"""Options of the commands that spread their work over Ray workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ClusterError

if TYPE_CHECKING:
    from ..ray_pool import Workers

_PANEL = "Many machines"

Address = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="local|auto|HOST:PORT",
        help="Work in Ray workers: on this machine, its cluster, or another.",
        rich_help_panel=_PANEL,
    ),
]
Count = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="As many as fit.", rich_help_panel=_PANEL),
]
Cpus = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker",
        metavar="N",
        help="4, or all of a smaller node; 1 with a GPU.",
        rich_help_panel=_PANEL,
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="N",
        help="1 where there are any; a fraction shares them.",
        rich_help_panel=_PANEL,
    ),
]


def workers(
    address: str | None, count: int | None, cpus: int | None, gpus: float | None
) -> Workers | None:
    """The workers that the options ask for; None without --ray."""
    if address is None:
        for option, value in (
            ("workers", count),
            ("cpus-per-worker", cpus),
            ("gpus-per-worker", gpus),
        ):
            if value is not None:
                raise ClusterError(f"--{option} is for Ray: add --ray local, or an address.")
        return None
    from ..ray_pool import Workers

    return Workers(address, count, cpus, gpus)
