"""The command `c2d`: upscale, serve, eval, train, export, models, info.

A mistake in what was asked ends in one sentence on stderr and exit code 2, a bug in its traceback
and exit code 1, Ctrl-C in 130. Torch is imported by the commands that compute, so that `c2d --help`
answers at once.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from ..errors import sentence
from ..version import version
from . import evaluate, export, serve, shipped, train, upscale
from .messages import INTERRUPTED, MISTAKE, ask_for_report, complain, print_any_name

app = typer.Typer(
    name="c2d",
    help="Make photographs larger, by any scale from 1 to 16.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, return its exit code; the one place where errors become sentences."""
    print_any_name()
    try:
        code = app(arguments, prog_name="c2d", standalone_mode=False)
        code = code if isinstance(code, int) else 0
        # typer answers Ctrl-C itself, by its code alone or, in older versions, by an Abort
        return complain("interrupted.", INTERRUPTED) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        return _leave_pipe()
    except Exception as error:
        usage = getattr(error, "format_message", None)  # a usage error of typer's
        told = usage() if usage else sentence(error)
        if told is not None:
            return complain(" ".join(told.split()), MISTAKE)
        traceback.print_exception(error)
        return ask_for_report()


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if show_version:
        typer.echo(f"c2d {version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _leave_pipe() -> int:
    """Stop silently: the reader of our output has closed it, as `head` does."""
    sys.stdout = None  # or Python would complain at its exit
    return 0


app.command()(upscale.upscale)
app.command()(serve.serve)
app.command("eval")(evaluate.evaluate)
app.command()(train.train)
app.command()(export.export)
app.command()(shipped.models)
app.command()(shipped.info)
