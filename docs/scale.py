"""Throughput of `c2d upscale --ray` against workers, on a cluster of this machine: scale.png.

    python docs/scale.py [--nodes 3] [--pictures 24]

Nodes of one CPU each are started here, so that beyond the processor's cores more workers only share
them. The rate counts from the first finished picture to the last: starting Ray and loading the
network, given beside it, are paid once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import matplotlib
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from c2d_models.ray_pool import RayPool, Workers
from c2d_models.upscaling import batch, jobs, on_ray
from c2d_models.upscaling.target import Target

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
PHOTO = HERE.parent / "examples" / "photo.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=24)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "in")
        pictures.mkdir()
        photo = Image.open(PHOTO)
        for number in range(asked.pictures):
            photo.save(pictures / f"{number:02}.png")
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        try:
            for _ in range(asked.nodes - 1):
                cluster.add_node(num_cpus=1)
            for count in range(1, asked.nodes + 1):
                output = Path(folder, f"out{count}")
                rows.append((count, *measure(cluster.address, count, pictures, output)))
                print(
                    "{} workers: {:.2f} pictures a second, {:.1f} s to the first".format(*rows[-1])
                )
        finally:
            ray.shutdown()
            cluster.shutdown()
    draw(rows)


def measure(address: str, count: int, pictures: Path, output: Path) -> tuple[float, float]:
    """(pictures per second after the first, seconds to the first)."""
    settings = on_ray.Settings(Target(3.0), "hiet_swinir_tiny_continuous", "cpu")
    started = time.perf_counter()
    with RayPool(Workers(address, count=count, cpus=1), may_use_gpus=False) as pool:
        plan = jobs.plan([pictures], output).jobs
        times = []
        for outcome in on_ray.upscale_files(plan, settings, batch.FileOptions(), pool):
            assert outcome.failure is None, outcome.failure
            times.append(time.perf_counter())
    return (len(times) - 1) / (times[-1] - times[0]), times[0] - started


def draw(rows: list[tuple[int, float, float]]) -> None:
    counts, rates, _ = zip(*rows, strict=True)
    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    axes.plot(counts, rates, "o-", label="measured")
    axes.plot(counts, [rates[0] * count for count in counts], ":", label="in proportion")
    axes.axvline(os.cpu_count() or 1, color="grey", lw=0.8)
    axes.text(os.cpu_count() or 1, 0, " cores of this machine", color="grey", va="bottom")
    axes.set(xlabel="workers of one CPU", ylabel="pictures per second", ylim=(0, None))
    axes.set_xticks(counts)
    axes.legend(frameon=False)
    figure.savefig(HERE / "scale.png", dpi=110)


if __name__ == "__main__":
    main()
