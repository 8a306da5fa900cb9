"""Scores of networks and of bicubic interpolation on image folders, at any real scale.

    run(["hiet_swinir_tiny_x4", "my.safetensors"], ["Set5"], [4], output="scores")

reads each high-resolution (HR) image, takes its low-resolution (LR) file where the set brings one
(or makes it by MATLAB's bicubic), enlarges it, and compares luma by the papers' rule, or LIIF's
(`metrics`), leaving out ceil(scale) pixels at each side. Every table has a bicubic row: if that
row is not the published one (Set5 x4: 28.43 dB), nothing else in the table can be trusted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from c2d_models import checkpoints, complexity
from c2d_models.data import DataError, imresize, orient, pair_files, read_pair
from c2d_models.metrics import RULES, ssim_y
from c2d_models.scores import BICUBIC, WRITERS, ImageScore, Result, output_files, to_table


def evaluate(
    net: nn.Module | None,
    hr_folder: str | Path | Sequence[Path],
    scale: float,
    lr_folder: str | Path | None = None,
    *,
    name: str | None = None,
    ensemble: bool = False,
    rule: str = "papers",
    console: Console | None = None,
) -> Result:
    """Score one network on one set at one scale.

    Args:
        net: a network of `c2d_models`, in eval mode and on the device to run on: continuous
            (`net.scale` None) at any scale, discrete at its own; None is bicubic interpolation.
        hr_folder: the HR images, or a folder with a subfolder `HR` (as Set5 is distributed), or
            image files.
        scale: real number >= 1.
        lr_folder: folder of files `<name>x<scale>.png` (or `<name>.png`), perhaps in a subfolder
            `X<scale>`. Left out: `LR_bicubic` beside `HR` where it exists. An image set without
            LR files is reduced by `imresize` (today's MATLAB), LR = floor(HR / scale). HR is
            cropped to round(LR * scale).
        name: model name for the result; left out, the network's own.
        ensemble: mean over the 8 flips and rotations of the input ("self-ensemble").
        rule: of PSNR, "papers" or "liif".
        console: where to show progress; None shows nothing.

    Raises:
        DataError: a missing or empty folder, LR files that do not fit the HR files, or a result
            that is not finite or of another size. ValueError: a scale that is below 1 or that a
            discrete network does not have, or a rule that is not known.
    """
    check_scale(net, scale, name)
    psnr = _psnr_by(rule)
    hr_files, lr_files, dataset = pair_files(hr_folder, lr_folder, scale)
    name = name or (BICUBIC if net is None else getattr(net, "name", type(net).__name__))
    border = math.ceil(scale)
    device = torch.device("cpu") if net is None else next(net.parameters()).device
    scores = []
    pairs = list(zip(hr_files, lr_files, strict=True))
    for hr_file, lr_file in track(
        pairs,
        f"{name} {dataset} x{scale:g}",
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    ):
        lr, hr = read_pair(hr_file, lr_file, scale)
        if net is not None and not scores:  # what is made once is no part of an image's time
            enlarge(net, lr.to(device), hr.shape[-2:], ensemble=False)
        start = _clock(device)
        sr = enlarge(net, lr.to(device), hr.shape[-2:], ensemble)
        seconds = _clock(device) - start
        if sr.shape != hr.shape or not torch.isfinite(sr).all():
            raise DataError(
                f"{name} made an image of shape {tuple(sr.shape)} from {hr_file.name}, or one "
                f"that is not finite; expected {tuple(hr.shape)}"
            )
        sr = sr.cpu()
        try:
            scores.append(
                ImageScore(hr_file.stem, psnr(sr, hr, border), ssim_y(sr, hr, border), seconds)
            )
        except ValueError as error:
            raise DataError(f"{hr_file} cannot be scored: {error}") from error
    ensemble = ensemble and net is not None
    return Result(
        model=name,
        params=0 if net is None else complexity.parameters(net),
        gmacs=0.0 if net is None else complexity.gmacs(net, scale=scale) * (8 if ensemble else 1),
        dataset=dataset,
        scale=float(scale),
        rule=rule,
        border=border,
        lr="imresize" if lr_files[0] is None else "files",
        ensemble=ensemble,
        device=device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        images=tuple(scores),
    )


def run(
    models: Sequence[str | Path],
    folders: Sequence[str | Path],
    scales: Sequence[float] | None = None,
    output: str | Path | None = None,
    ensemble: bool = False,
    device: str | torch.device | None = None,
    console: Console | None = None,
    rule: str = "papers",
    pictures: str | Path | None = None,
    crop: tuple[int, int, int] | None = None,
) -> list[Result]:
    """`c2d eval`: bicubic and every model on every folder at every scale; prints a table.

    Args:
        models: names or files as `checkpoints.load` takes them; none scores bicubic alone.
        folders: image sets as `evaluate` takes them.
        scales: real numbers >= 1; None or empty takes the discrete models' scale, or 2, 3 and 4.
        output: file ending in .json, .md or .csv, or a folder that gets all three, named
            `evaluation.*`. JSON and CSV hold the score of each image.
        ensemble: mean over 8 flips and rotations for the networks.
        device: "cpu", "cuda", ...; None takes CUDA where it is available.
        console: where the table goes; None is standard output.
        rule: of PSNR, "papers" or "liif".
        pictures: folder for the pictures of `c2d_models.pictures`; they need matplotlib.
        crop: (x, y, size) of the part of the HR images that they show; None chooses.

    Returns:
        The results, in the order of the table.

    Raises:
        ValueError (DataError, checkpoints.ModelFileError): a folder, model, scale, rule, output
            or crop that cannot be used: told before the first score, but for images inside a
            folder that are broken or too small. OSError: a file that cannot be written.
    """
    console = console or Console()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not folders:
        raise DataError("no image folder is given; name at least one")
    _psnr_by(rule)
    files = output_files(output)
    nets: dict[str, nn.Module | None] = {BICUBIC: None}
    for model in models:
        nets[str(model)] = checkpoints.load(model, device=device)
    if not scales:
        own = {net.scale for net in nets.values() if net is not None and net.scale is not None}
        scales = sorted(own) or [2, 3, 4]
    for name, net in nets.items():
        for scale in scales:
            check_scale(net, scale, name)
    for folder, scale in product(folders, scales):
        pair_files(folder, None, scale)
    if pictures is not None:
        from c2d_models import pictures as drawing  # it needs this module

        regions = drawing.plan(pictures, folders, scales, crop)
    elif crop is not None:
        raise ValueError("a crop is a part of a picture; give a folder of pictures too")
    results = [
        evaluate(net, folder, scale, name=name, ensemble=ensemble, rule=rule, console=console)
        for folder in folders
        for scale in scales
        for name, net in nets.items()
    ]
    console.print(to_table(results))
    for file in files:
        checkpoints.write_whole(file, WRITERS[file.suffix](results).encode())
        console.print(f"written: {file}", markup=False, soft_wrap=True)
    if pictures is not None:
        for file in drawing.draw(pictures, regions, results, nets, ensemble=ensemble):
            console.print(f"written: {file}", markup=False, soft_wrap=True)
    return results


def check_scale(net: nn.Module | None, scale: float, name: str | None = None) -> None:
    """ValueError, one sentence, if `net` (None: bicubic) cannot enlarge by `scale`."""
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"scale is {scale}; give a number of at least 1")
    own = None if net is None else net.scale
    if own is not None and own != scale:
        raise ValueError(
            f"{name or net.name} enlarges by {own} only, not by {scale:g}; "
            f"give scale {own} or a continuous model"
        )


def _clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _psnr_by(rule: str) -> Callable[[Tensor, Tensor, int], float]:
    if rule not in RULES:
        raise ValueError(f"rule is {rule}; give one of: {', '.join(RULES)}")
    return RULES[rule]


@torch.inference_mode()
def enlarge(net: nn.Module | None, lr: Tensor, size: Sequence[int], ensemble: bool) -> Tensor:
    """SR image (3, *size): uint8 from bicubic, floating point from a network."""
    height, width = size
    if net is None:
        return imresize(lr, size=(height, width))
    x, total = lr.float() / 255.0, torch.zeros((), device=lr.device)
    turns = 8 if ensemble else 1
    for turn in range(turns):
        turned = (width, height) if turn & 1 else (height, width)
        x_turned = orient(x, turn)[None].contiguous()
        y = net(x_turned) if net.scale is not None else net(x_turned, size=turned)
        # Undone in the other order: flips (turn without its transposition), then transposition.
        total = total + orient(orient(y[0].float(), turn & 6), turn & 1)
    return total / turns
