"""Scores computed by Ray workers, any number of images at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress as Bar

from ..errors import DataError
from ..networks.network import Network
from ..pretrained import loading
from ..ray_pool import TRIES, Progress, RayPool, Task, WorkerDied
from .results import BICUBIC, ImageScore, Result
from .scoring import Pairs, Scorer


class _Image(NamedTuple):
    """One image for one row of the table."""

    row: int
    place: int
    model: str
    scale: float
    hr_file: Path
    lr_file: Path | None


def evaluate_all(
    nets: dict[str, Network | None],
    folders: Sequence[str | Path],
    scales: Sequence[float],
    *,
    ensemble: bool,
    rule: str,
    pool: RayPool,
    console: Console,
) -> list[Result]:
    """Every network on every folder at every scale, as `scoring.evaluate` finds it.

    Args:
        nets: by the name or file that the workers load them by; None is bicubic.
        folders, scales, ensemble, rule: as in `scoring.evaluate`.
        pool: the workers.
        console: where a progress bar goes if it is a terminal.

    Raises:
        DataError: as `scoring.evaluate`, or an image at which workers died.
    """
    rows = [
        (Pairs.find(folder, None, scale), Scorer(net, scale, name, ensemble, rule))
        for folder, scale, (name, net) in product(folders, scales, nets.items())
    ]
    tasks = [
        Task(_Image(row, place, scorer.name, scorer.scale, *files), files[0].stat().st_size)
        for row, (pairs, scorer) in enumerate(rows)
        for place, files in enumerate(pairs)
    ]
    scored: list[list[ImageScore | str]] = [[""] * len(pairs) for pairs, _ in rows]
    device = "cuda" if pool.gpus_each else "cpu"
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(f"{len(tasks)} images on {pool.count} workers", total=len(tasks))
        for image, result in pool.run(partial(_scoring, device, ensemble, rule), tasks):
            if isinstance(result, WorkerDied):
                raise DataError(f"{image.hr_file}: {TRIES} workers died at it; out of memory?")
            scored[image.row][image.place], device = result
            bar.advance(shown)
    return [
        scorer.result(pairs, scores, device)
        for (pairs, scorer), scores in zip(rows, scored, strict=True)
    ]


def _scoring(
    device: str, ensemble: bool, rule: str
) -> Callable[[_Image, Progress], tuple[ImageScore | str, str]]:
    """Build the function by which a worker scores images; networks are loaded when first needed."""
    nets: dict[str, Network | None] = {BICUBIC: None}
    scorers: dict[tuple[str, float], Scorer] = {}

    def work(image: _Image, progress: Progress) -> tuple[ImageScore | str, str]:
        if image.model not in nets:
            nets[image.model] = loading.load(image.model, device)
        key = (image.model, image.scale)
        if key not in scorers:
            scorers[key] = Scorer(nets[image.model], image.scale, image.model, ensemble, rule)
        return scorers[key](image.hr_file, image.lr_file), scorers[key].device_name

    return work
