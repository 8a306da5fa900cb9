"""`python -m bench.report`: stored results as docs/benchmarks.md, plots, and the README's tables.

python -m bench.report                              # every bench/results/<device>.json
python -m bench.report NEW.json --against OLD.json  # what became slower than noise explains
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import complexity
from bench.stored import GROWTH_FROM, Results, exponent, markdown
from bench.summary import absences, left_out, number, slowest
from c2d_kernels.operators import operators

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs"


def growth_table(results: Results) -> list[str]:
    """Seconds and MiB by side, and what they grow with.

    Processor time in user mode leaves out the kernel's: it clears the pages of each block of more
    than 32 MiB that glibc maps anew.
    """
    lines = []
    sides = sorted({int(row["side"]) for row in results.growth})
    for field, unit, divisor in (
        ("median_ms", "time, s", 1e3),
        ("user_s", "processor time in user mode, s", 1),
        ("peak_MiB", "peak memory, MiB", 1),
    ):
        rows = []
        for network in dict.fromkeys(row["network"] for row in results.growth):
            points = {
                int(row["side"]): row[field] / divisor
                for row in results.growth
                if row["network"] == network and row.get(field) is not None
            }
            large = [(side**2, value) for side, value in points.items() if side >= GROWTH_FROM]
            slope = exponent(large)
            cells = [number(points[side]) if side in points else "-" for side in sides]
            rows.append([network, *cells, "-" if slope is None else f"{slope:.2f}"])
        headings = [unit, *(f"{side}²" for side in sides), f"exponent from {GROWTH_FROM}²"]
        lines += [*markdown(headings, rows), ""]
    return lines


def race_tables(results: Results) -> list[str]:
    """One table per operator or network."""
    lines = []
    for subject in results.subjects():
        rows = [
            [
                row["shape"],
                row["dtype"],
                "fwd" if row["direction"] == "forward" else "fwd+bwd",
                f"{row['backend']}{'*' if row['error'] > row['bound'] else ''}",
                number(row["median_ms"]),
                f"{row['ratio']:.2f}",
                f"{row['ratio_q1']:.2f}-{row['ratio_q3']:.2f}",
                number(row["GFLOP_s"]),
                number(row["GB_s"]),
                "" if row["share"] is None else f"{row['share']:.0%}",
                number(row["peak_MiB"]),
            ]
            for row in results.races
            if row["subject"] == subject
        ]
        headings = [
            *("shape", "dtype", "pass", "backend", "ms", "ratio", "quartiles"),
            *("GFLOP/s", "GB/s", "share", "peak MiB"),
        ]
        lines += [f"### `{subject}`", "", *markdown(headings, rows), ""]
    return lines


def about(results: Results) -> list[str]:
    """Describe the machine of the numbers, and their meaning."""
    here = results.machine
    gpu = f", driver {here['driver']}, triton {here['triton']}" if "gpu" in here else ""
    changed = " with changes" if results.commit["dirty"] else ""
    lines = [
        f"{here.get('gpu', here['processor'])}; {here['threads']} threads of {here['cores']} "
        f"cores, pinned to {here['pinned_to']}, vectors {here['isa']}; {here['system']}, Python "
        f"{here['python']}, torch {here['torch']}{gpu}; commit {results.commit['id'][:12]}"
        f"{changed}, {here['date'][:10]}.",
        "",
        "Ceilings measured in the same run: products "
        f"{here['product_float32_GFLOP_s']:.0f} GFLOP/s in float32 and "
        f"{here['product_bfloat16_GFLOP_s']:.0f} in bfloat16, a copy {here['copy_GB_s']:.0f} GB/s "
        "(read and written together).",
    ]
    if here.get("others_share") is not None:
        lines[-1] += f" Other processes used {here['others_share']:.0%} of the machine."
    return [
        *lines,
        "",
        "*Ratio*: the reference's time over this one's, the median of runs in turns; above 1 is "
        "faster. The reference's own row is a race against itself: its quartiles are the noise. "
        "*GFLOP/s* counts the definition's operations, whatever was spared; *GB/s* every tensor "
        "once; *share* is of the speed that the ceilings allow, and may pass 100 % where work is "
        "spared or stays in cache. A `*` marks a peer less exact than the rule asks of ours.",
        "",
    ]


def not_timed(results: Results) -> list[str]:
    """List what was refused, left out or absent, and why."""
    lines = [f"- refused, not timed: {reason}" for reason in results.refused.values()]
    lines += [f"- {line}" for line in left_out(results.left_out)]
    lines += [f"- {line}" for line in absences(results.absent)]
    others = [
        name for name in (*operators, *complexity.networks()) if name not in results.subjects()
    ]
    if others:
        lines.append(f"- not in this run, which was stopped or narrowed: {', '.join(others)}")
    return ["### Not timed", "", *lines, ""] if lines else []


def document(all_results: Sequence[Results]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m bench.report` from `bench/results/`; how it is measured and why it "
        "can be believed stands in [bench/README.md](../bench/README.md).",
        "",
        "## Complexity",
        "",
        *complexity.table(),
    ]
    if not any("gpu" in results.machine for results in all_results):
        lines += ["## GPU", "", "Not measured on a GPU yet.", ""]
    for results in all_results:
        lines += [f"## {results.machine.get('gpu', results.machine['processor'])}", ""]
        lines += about(results)
        for kind, caption in plots_of(results).items():
            lines += [f"![{caption}](benchmarks/{results.name}-{kind}.png)", ""]
        if results.growth:
            lines += ["### Growth with the size of the image", "", *growth_table(results)]
        if results.commands:
            rows = [
                [f"`{row['command']}`", number(row["median_ms"]), f"{row['ratio']:.2f}"]
                for row in results.commands
            ]
            headings = ["`examples/photo.png`, from the prompt to the file", "ms", "ratio"]
            lines += [*markdown(headings, rows), ""]
        lines += [*race_tables(results), *not_timed(results)]
        if results.slowest:
            lines += [f"S{slowest(results.slowest)[1:]}.", ""]
    return "\n".join(lines)


def plots_of(results: Results) -> dict[str, str]:
    """The plots a run has enough rows for, and their captions."""
    kinds = {
        "ratios": "how many times as long the others take",
        "roofline": "speed against the operations a byte",
        "quality": "PSNR against time",
        "growth": "time and memory against the size of the image",
    }
    if not results.growth:
        del kinds["growth"]
    if not any(row["GB_s"] for row in results.races):
        del kinds["roofline"]
    return kinds


def compared(new: Results, old: Results) -> list[str]:
    """Rows of ours whose ratio to the reference fell by more than both runs' quartiles explain."""
    keys = ("subject", "shape", "dtype", "direction", "backend")
    before = {tuple(row[key] for key in keys): row for row in old.races}
    lines = []
    for row in new.races:
        key = tuple(row[key] for key in keys)
        if key not in before or row["backend"] == "reference":
            continue
        was = before[key]
        if row["ratio_q3"] < was["ratio_q1"]:
            fell = 1 - row["ratio"] / was["ratio"]
            lines.append(
                f"slower by {fell:.0%}: {' '.join(map(str, key))}: "
                f"{was['ratio']:.2f}x ({was['ratio_q1']:.2f}-{was['ratio_q3']:.2f}) became "
                f"{row['ratio']:.2f}x ({row['ratio_q1']:.2f}-{row['ratio_q3']:.2f})"
            )
    gone = [key for key in before if new.race(**dict(zip(keys, key, strict=True))) is None]
    lines += [f"no longer timed: {' '.join(map(str, key))}" for key in gone]
    return lines or ["nothing is slower than the noise explains."]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for what cannot be read, 1 if --against finds something slower."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="files (default: bench/results)")
    parser.add_argument("--against", type=Path, metavar="OLD", help="compare one file with OLD")
    options = parser.parse_args(arguments)
    paths = options.results or sorted(
        path for path in RESULTS.glob("*.json") if not path.stem.endswith("-quick")
    )
    try:
        runs = [Results(path) for path in paths]
        old = Results(options.against) if options.against else None
    except (OSError, ValueError, KeyError) as error:
        print(f"a file of results cannot be read: {error}", file=sys.stderr)
        return 2
    if old is not None:
        if len(runs) != 1:
            print("--against compares one file of results with OLD: name one.", file=sys.stderr)
            return 2
        lines = compared(runs[0], old)
        print("\n".join(lines))
        return int(any(line.startswith(("slower", "no longer")) for line in lines))
    if not runs:
        print("there are no results: pytest bench --benchmark --results", file=sys.stderr)
        return 2
    from bench import plots, readme

    (DOCS / "benchmarks").mkdir(parents=True, exist_ok=True)
    for results in runs:
        for kind in plots_of(results):
            plots.draw(kind, results, DOCS / "benchmarks" / f"{results.name}-{kind}.png")
    (DOCS / "benchmarks.md").write_text(document(runs), encoding="utf-8")
    readme.rewrite(runs[0])
    print(
        f"written: docs/benchmarks.md, its plots, and the tables of README.md from {runs[0].name}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
