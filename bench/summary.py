"""The short table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from bench.comparison import Ledger
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
    "traffic",
)


def lines(ledger: Ledger, machine: dict[str, object], others: float | None) -> list[str]:
    """The table, what was refused, what was absent, and what the numbers were measured on."""
    text = align([HEADINGS, *(cells(row) for row in ledger.rows)]) if ledger.rows else []
    text += [""] if text else []
    if any(map(beyond_the_rule, ledger.rows)):
        text.append(f"*: a peer less exact than our rule allows us (up to {PEER_SLACK} times).")
    text += [f"REFUSED, not timed: {reason}" for reason in ledger.refused.values()]
    for reason, names in by_reason(ledger.absent).items():
        text.append(f"absent: {', '.join(names)}: {reason}")
    text.append(
        f"{machine['processor']} ({machine['isa']}), threads {machine['threads']} "
        f"of {machine['cores']} cores, pinned to {machine['pinned_to']}, torch {machine['torch']}"
    )
    text.append(
        "ratio: the reference's time over this backend's, median of runs taken in turns "
        "(above 1: faster);"
    )
    text.append("the reference's own ratio is a race against itself: its quartiles are the noise.")
    if any(row.get("times_least_traffic") for row in ledger.rows):
        text.append(
            f"traffic: the time over that of a copy of the bytes that must be moved, at "
            f"{machine['copy_GB_s']:.0f} GB/s (read and written together)."
        )
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
        f"{row['median_ms']:.3g}" if row["median_ms"] < 100 else f"{row['median_ms']:.0f}",
        f"{row['ratio']:.2f}x",
        f"{row['ratio_q1']:.2f}-{row['ratio_q3']:.2f}",
        f"{row['times_least_traffic']:.1f}x" if row.get("times_least_traffic") else "",
    )


def beyond_the_rule(row: dict[str, object]) -> bool:
    """Whether a peer is less exact than the rule asks of this project's kernels."""
    return row["error"] > row["bound"]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell; the last four, being numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place >= len(row) - 4 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def by_reason(absent: dict[str, str]) -> dict[str, list[str]]:
    """The absent contenders gathered under the sentence they share."""
    gathered: dict[str, list[str]] = {}
    for name, reason in absent.items():
        gathered.setdefault(reason, []).append(name)
    return gathered
