"""`c2d serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UpscaleError
from .messages import unwind_when_terminated


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Without it, the first free one from 7860 on.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Selected at first; by default, the one that suits."
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    tile: Annotated[
        str, typer.Option(metavar="N|auto|0", help="Side of the tiles in input pixels; 0: none.")
    ] = "auto",
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Refuse photographs that claim more pixels.")
    ] = 2**26,
    show: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Enlarge photographs on a page in the browser.

    It needs no other connection. Uploads are removed when their page is closed.
    """
    if max_pixels < 1:
        raise UpscaleError(f"max-pixels is {max_pixels}; it must be 1 or more.")
    try:
        from ..page import app
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UpscaleError(
            "the page needs Gradio: pip install 'c2d-isr[page]', or pip install gradio."
        ) from None
    from ..upscaling.upscaler import Upscaler

    Upscaler.load(None, model, device, tile=tile)  # errors are reported before the first visitor
    unwind_when_terminated()
    app.serve(app.Settings(device, tile, max_pixels, model), host, port, show)
