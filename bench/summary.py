"""The short table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.budget import LeftOut
from bench.comparison import Absences, Ledger
from bench.correctness import PEER_SLACK

HEADINGS = (
    "operator",
    "shape",
    "dtype",
    "pass",
    "backend",
    "median ms",
    "ratio",
    "quartiles",
    "GFLOP/s",
    "GB/s",
    "share",
    "peak MiB",
)
NUMBERS = 7  # the last seven columns hold numbers


def lines(ledger: Ledger, machine: dict[str, object], others: float | None) -> list[str]:
    """The table, what was not timed and why, what took longest, and where it was measured."""
    text = align([HEADINGS, *(cells(row) for row in ledger.rows)]) if ledger.rows else []
    for kind, rows in ledger.others.items():
        columns = list(rows[0])
        cells_of = ([plain(row[name]) for name in columns] for row in rows)
        text += [""] if text else []
        text += align([[kind, *columns[1:]], *cells_of], numbers=len(columns) - 1)
    text += [""] if text else []
    if any(map(beyond_the_rule, ledger.rows)):
        text.append(f"*: a peer less exact than our rule allows us (up to {PEER_SLACK} times).")
    text += [f"REFUSED, not timed: {reason}" for reason in ledger.refused.values()]
    text += left_out(ledger.left_out)
    text += absences(ledger.absent)
    text.append(
        f"{machine['processor']} ({machine['isa']}), threads {machine['threads']} "
        f"of {machine['cores']} cores, pinned to {machine['pinned_to']}, torch {machine['torch']}"
    )
    text.append(
        "ratio: the reference's time over this backend's, median of runs taken in turns "
        "(above 1: faster);"
    )
    text.append("the reference's own ratio is a race against itself: its quartiles are the noise.")
    if ledger.rows:
        text.append(
            "GFLOP/s: of the definition, whatever was spared; GB/s: every tensor read or written "
            "once; share: of the speed that "
            f"{machine['product_float32_GFLOP_s']:.0f} GFLOP/s (float32 products, bfloat16 "
            f"{machine['product_bfloat16_GFLOP_s']:.0f}) and {machine['copy_GB_s']:.0f} GB/s "
            "(a copy, read and written together), measured here, would allow;"
        )
        text.append("peak: what the process grew by during one call.")
    if ledger.seconds:
        text.append(slowest(ledger.slowest()))
    if others is not None:
        warning = ": do not quote the milliseconds" if others > 0.1 else ""
        text.append(f"other processes used {others:.0%} of this machine during the run{warning}.")
    return text


def cells(row: dict[str, object]) -> tuple[str, ...]:
    """One row of the table."""
    return (
        str(row["subject"]),
        str(row["shape"]),
        str(row["dtype"]),
        "fwd+bwd" if row["direction"] != "forward" else "fwd",
        str(row["backend"]) + ("*" if beyond_the_rule(row) else ""),
        number(row["median_ms"]),
        f"{row['ratio']:.2f}x",
        f"{row['ratio_q1']:.2f}-{row['ratio_q3']:.2f}",
        number(row["GFLOP_s"]),
        number(row["GB_s"]),
        "" if row["share"] is None else f"{row['share']:.0%}",
        number(row["peak_MiB"]),
    )


def number(value: float | None) -> str:
    """Three digits, or nothing."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def beyond_the_rule(row: dict[str, object]) -> bool:
    """Whether a peer is less exact than the rule asks of this project's kernels."""
    return row["error"] > row["bound"]


def plain(value: object) -> str:
    """A cell of a table of another kind."""
    return number(value) if isinstance(value, float) else str(value)


def align(rows: Sequence[Sequence[str]], numbers: int = NUMBERS) -> list[str]:
    """Columns padded to their widest cell; the last ones, being numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place >= len(row) - numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def absences(absent: Absences) -> list[str]:
    """One line per reason: who is absent from how many rows of what."""
    return [
        f"absent: {'; '.join(f'{name} from {rows_of(rows)}' for name, rows in names.items())}: "
        f"{reason}"
        for reason, names in absent.items()
    ]


def left_out(rows: Iterable[LeftOut]) -> list[str]:
    """A line for each row that was given up."""
    return [f"left out after {row.seconds:.1f} s: {row.row}: {row.reason}" for row in rows]


def slowest(rows: Sequence[tuple[str, float]]) -> str:
    """The share of each part in a run's time."""
    named = "; ".join(f"{seconds:.1f} s {row}" for row, seconds in rows)
    return f"slowest rows, with their checks: {named}"


def rows_of(rows: dict[str, int]) -> str:
    """As in "1 row of swinir_l, 2 of hit_sir"."""
    (first, count), *rest = rows.items()
    others = "".join(f", {more} of {subject}" for subject, more in rest)
    return f"{count} row{'s' if count > 1 else ''} of {first}{others}"
