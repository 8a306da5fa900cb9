"""The pictures of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.published import PUBLISHED

if TYPE_CHECKING:
    from bench.stored import Results

MARKS = "osD^vP*X<>hd"
WHOLE = "320x180 to 1280x720"
OURS = ("auto", "cpu", "triton", "cuda")


def draw(kind: str, results: Results, path: Path) -> None:
    """Draw one of the plots of `report.plots_of` into a PNG file."""
    figure = plt.figure(figsize=SIZES[kind], dpi=130, layout="constrained")
    KINDS[kind](figure, results)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def ratios(figure: plt.Figure, results: Results) -> None:
    """Bars: our speed over each peer's, one group per subject, largest float32 shape, forward."""
    axes = figure.subplots()
    labels, values, colours = [], [], []
    shades = dict(zip(("reference", "torch.compile", "SDPA", "FlexAttention", "ONNX Runtime",
                       "materialised"), plt.colormaps["tab10"].colors, strict=False))  # fmt: skip
    for subject in reversed(results.subjects()):
        rows = [
            row
            for row in results.races
            if row["subject"] == subject
            and row["dtype"] == "float32"
            and row["direction"] == "forward"
        ]
        if not rows:
            continue
        largest = max(rows, key=lambda row: row["GFLOP_s"] * row["median_ms"])["shape"]
        shape = WHOLE if any(row["shape"] == WHOLE for row in rows) else largest
        rows = [row for row in rows if row["shape"] == shape]
        ours = next((row for name in OURS for row in rows if row["backend"] == name), None)
        if ours is None:
            continue
        for row in reversed(rows):
            if row["backend"] in shades:
                labels.append(f"{subject} | {row['backend']}")
                peer = 1.0 if row["backend"] == "reference" else row["ratio"]
                values.append(ours["ratio"] / peer)
                colours.append(shades[row["backend"]])
    axes.barh(range(len(values)), values, color=colours, height=0.75)
    for place, value in enumerate(values):
        axes.text(value * 1.03, place, f"{value:.1f}", va="center", fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 2.2 * max(values, default=1))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.set_xlabel("how many times as long as ours (float32, forward, largest shape)")
    axes.grid(axis="x", alpha=0.3)


def roofline(figure: plt.Figure, results: Results) -> None:
    """GFLOP/s of our kernels over operations per byte, under the ceilings of the same run."""
    axes = figure.subplots()
    bandwidth, product = (
        results.machine[name] for name in ("copy_GB_s", "product_float32_GFLOP_s")
    )
    rows = [row for row in results.races if row["dtype"] == "float32" and row["GB_s"]]
    rows = [row for row in rows if row["direction"] == "forward"]
    marks = dict(zip(dict.fromkeys(row["subject"] for row in rows), MARKS, strict=False))
    drawn: set[str] = set()
    spread: list[float] = []
    for row in rows:
        if row["backend"] not in (*OURS, "reference"):
            continue
        intensity = row["GFLOP_s"] / row["GB_s"]
        spread.append(intensity)
        ours = row["backend"] in OURS
        name = row["subject"] if ours and row["subject"] not in drawn else None
        drawn |= {row["subject"]} if ours else set()
        axes.scatter(
            intensity,
            row["GFLOP_s"],
            marker=marks[row["subject"]],
            s=42,
            color="tab:blue" if ours else "none",
            edgecolor="tab:blue" if ours else "grey",
            label=name,
        )
    low, high = (min(spread) / 2, max(spread) * 2) if spread else (0.1, 100)
    axes.plot(
        [low, product / bandwidth, max(high, 2 * product / bandwidth)],
        [low * bandwidth, product, product],
        color="tab:red",
        label=f"{bandwidth:.0f} GB/s copy, {product:.0f} GFLOP/s product",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations of the definition a byte of least traffic")
    axes.set_ylabel("GFLOP/s (float32, forward; grey outlines: the reference)")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def quality(figure: plt.Figure, results: Results) -> None:
    """Published PSNR of the networks over the time they take here, ours and the reference."""
    axes = figure.subplots()
    for (name, figures), mark in zip(PUBLISHED.items(), MARKS, strict=False):
        rows = {
            row["backend"]: row
            for row in results.races
            if row["subject"] == name
            and row["shape"] == WHOLE
            and row["dtype"] == "float32"
            and row["direction"] == "forward"
        }
        if 4 not in figures or "auto" not in rows:
            continue
        seconds = rows["auto"]["median_ms"] / 1e3
        psnr, plain = figures[4].urban100, seconds * rows["auto"]["ratio"]
        axes.plot([seconds, plain], [psnr, psnr], color="lightgrey", zorder=0)
        axes.scatter(seconds, psnr, marker=mark, s=60, color="tab:blue", label=name)
        axes.scatter(plain, psnr, marker=mark, s=60, facecolor="none", edgecolor="grey")
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds for {WHOLE} (blue: these operators; grey: plain PyTorch)")
    axes.set_ylabel("PSNR-Y on Urban100 x4, dB, as published")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def growth(figure: plt.Figure, results: Results) -> None:
    """Seconds and MiB over the pixels of the image, both logarithmic."""
    from bench.stored import GROWTH_FROM, exponent

    panels: list[Axes] = list(figure.subplots(1, 2))
    fields = (("median_ms", 1e3, "seconds"), ("peak_MiB", 1, "peak MiB"))
    for axes, (field, divisor, unit) in zip(panels, fields, strict=True):
        for network, mark in zip(
            dict.fromkeys(row["network"] for row in results.growth), MARKS, strict=False
        ):
            points = [
                (row["side"] ** 2, row[field] / divisor)
                for row in results.growth
                if row["network"] == network and row[field]
            ]
            slope = exponent([point for point in points if point[0] >= GROWTH_FROM**2])
            label = network if slope is None else f"{network}: pixels^{slope:.2f}"
            axes.plot(*zip(*points, strict=True), marker=mark, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("pixels of the LR image (x4)")
        axes.set_ylabel(unit)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)


KINDS: dict[str, Callable[[plt.Figure, Results], None]] = {
    "ratios": ratios,
    "roofline": roofline,
    "quality": quality,
    "growth": growth,
}
SIZES = {"ratios": (8, 9), "roofline": (7.5, 5.5), "quality": (7.5, 5), "growth": (11, 4.5)}
