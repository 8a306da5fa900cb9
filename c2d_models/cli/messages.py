"""Messages of the command line, and the exit codes that go with them."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

BUG, MISTAKE, INTERRUPTED = 1, 2, 130
_REPORT = "this is a bug in c2d-isr: please report it with"


def warn(told: str) -> None:
    """Print one sentence on stderr."""
    end = "" if told.endswith((".", "?")) else "."
    print(f"c2d: {told}{end}", file=sys.stderr)


def complain(told: str, code: int) -> int:
    """`warn`, and return the exit code that goes with it."""
    warn(told)
    return code


def ask_for_report() -> int:
    """Ask for a report of the bug whose traceback is on stderr."""
    return complain(f"{_REPORT} the lines above.", BUG)


def report_bugs(log: Path, alone: bool) -> int:
    """Ask for a report with the tracebacks in `log`; those of a single file are shown instead."""
    if not alone:
        return complain(f"{_REPORT} the file {log}.", BUG)
    sys.stderr.write(log.read_text(encoding="utf-8"))
    log.unlink()
    return ask_for_report()


def print_any_name() -> None:
    """Let the console show file names that its encoding does not hold, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")


def unwind_when_terminated() -> None:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that temporary files go."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
