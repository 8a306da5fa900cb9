"""Scores of networks and of bicubic interpolation on image folders, at any real scale.

    run(["hiet_swinir_tiny_x4", "my.safetensors"], ["Set5"], scales=[4], output="scores")

reads each high-resolution (HR) image, takes its low-resolution (LR) file where the set brings one
(or makes it by MATLAB's bicubic), enlarges it, and compares luma by the papers' rule, or LIIF's
(`metrics`), leaving out ceil(scale) pixels at each side. Every table has a bicubic row: if that
row is not the published one (Set5 x4: 28.43 dB), nothing else in the table can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from ..errors import DataError, EvaluationError
from ..files import write_whole
from ..images.sets import pair_files
from ..networks.network import Network
from ..pretrained import loading
from ..ray_pool import RayPool, Workers
from . import pictures as drawing
from .on_ray import evaluate_all
from .results import BICUBIC, WRITERS, Result, output_files, to_table
from .scoring import check_serves, evaluate, psnr_by


def run(
    models: Sequence[str | Path],
    folders: Sequence[str | Path],
    *,
    scales: Sequence[float] | None = None,
    output: str | Path | None = None,
    ensemble: bool = False,
    device: str | torch.device | None = None,
    console: Console | None = None,
    rule: str = "papers",
    pictures: str | Path | None = None,
    crop: tuple[int, int, int] | None = None,
    workers: Workers | None = None,
) -> list[Result]:
    """`c2d eval`: bicubic and every model on every folder at every scale; prints a table.

    Args:
        models: names or files as `loading.load` takes them; none scores bicubic alone.
        folders: image sets as `evaluate` takes them.
        scales: real numbers >= 1; None or empty takes the discrete models' scale, or 2, 3 and 4.
        output: file ending in .json, .md or .csv, or a folder that gets all three, named
            `evaluation.*`. JSON and CSV hold the score of each image.
        ensemble: mean over 8 flips and rotations for the networks.
        device: "cpu", "cuda", ...; None takes CUDA where it is available.
        console: where the table goes; None is standard output.
        rule: of PSNR, "papers" or "liif".
        pictures: folder for the pictures of `evaluation.pictures`; they need matplotlib.
        crop: (x, y, size) of the part of the HR images that they show; None chooses.
        workers: Ray workers to score on; None scores here. Models and folders must lie where all
            nodes see them, and the device says whether workers may take GPUs.

    An image that cannot be read is left out and named, and the table says of how many images it
    has the means.

    Returns:
        The results, in the order of the table.

    Raises:
        C2DError: a folder, model, scale, rule, output
            or crop that cannot be used: told before the first score, but for images inside a
            folder that are too small. OSError: a file that cannot be written.
    """
    console = console or Console()
    anywhere = device is None
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not folders:
        raise DataError("no image folder is given; name at least one")
    psnr_by(rule)
    files = output_files(output)
    nets: dict[str, Network | None] = {BICUBIC: None}
    for model in models:
        nets[str(model)] = loading.load(model, device=device)
    if not scales:
        own = {net.scale for net in nets.values() if net is not None and net.scale is not None}
        scales = sorted(own) or [2, 3, 4]
    for name, net in nets.items():
        for scale in scales:
            check_serves(net, scale, name)
    for folder, scale in product(folders, scales):
        pair_files(folder, None, scale)
    if pictures is not None:
        regions = drawing.plan(pictures, folders, scales, crop)
    elif crop is not None:
        raise EvaluationError("a crop is a part of a picture; give a folder of pictures too")
    if workers is None:
        results = [
            evaluate(net, folder, scale, name=name, ensemble=ensemble, rule=rule, console=console)
            for folder, scale, (name, net) in product(folders, scales, nets.items())
        ]
    else:
        with RayPool(workers, may_use_gpus=anywhere or device.type == "cuda") as pool:
            results = evaluate_all(
                nets, folders, scales, ensemble=ensemble, rule=rule, pool=pool, console=console
            )
    for sentence in dict.fromkeys(each for result in results for each in result.left_out):
        console.print(f"left out: {sentence}", markup=False, soft_wrap=True)
    console.print(to_table(results))
    for file in files:
        write_whole(file, WRITERS[file.suffix](results).encode())
        console.print(f"written: {file}", markup=False, soft_wrap=True)
    if pictures is not None:
        for file in drawing.draw(pictures, regions, results, nets, ensemble=ensemble):
            console.print(f"written: {file}", markup=False, soft_wrap=True)
    return results
