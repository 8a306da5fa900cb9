"""The score of one network on one image set at one scale."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..errors import ArgumentError, DataError, EvaluationError, ImageError
from ..images.metrics import RULES, ssim_y
from ..images.resize import imresize
from ..images.sets import orient, pair_files, read_pair
from ..networks import complexity
from ..networks.network import Network
from .results import BICUBIC, ImageScore, Result


def evaluate(
    net: Network | None,
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
        DataError: a missing or empty folder, one without an image that can be read (single ones
            are left out), LR files that do not fit the HR files, or a result that is not finite or
            of another size.
        EvaluationError: a scale that is below 1 or that a discrete network does not have, or a
            rule that is not known.
    """
    check_serves(net, scale, name)
    psnr = psnr_by(rule)
    hr_files, lr_files, dataset = pair_files(hr_folder, lr_folder, scale)
    if name is None:
        name = BICUBIC if net is None else net.name or type(net).__name__
    border = math.ceil(scale)
    device = torch.device("cpu") if net is None else next(net.parameters()).device
    scores: list[ImageScore] = []
    left_out: list[str] = []
    pairs = list(zip(hr_files, lr_files, strict=True))
    for hr_file, lr_file in track(
        pairs,
        f"{name} {dataset} x{scale:g}",
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    ):
        try:
            lr, hr = read_pair(hr_file, lr_file, scale)
        except ImageError as error:
            left_out.append(str(error))
            continue
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
        except ArgumentError as error:
            raise DataError(f"{hr_file} cannot be scored: {error}") from error
    if not scores:
        raise DataError(f"no image of {dataset} can be read; the first: {left_out[0]}")
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
        left_out=tuple(left_out),
    )


def check_serves(net: Network | None, scale: float, name: str | None = None) -> None:
    """EvaluationError if `net` (None: bicubic) cannot enlarge by `scale`."""
    if not (math.isfinite(scale) and scale >= 1):
        raise EvaluationError(f"scale is {scale}; give a number of at least 1")
    if net is not None and net.scale is not None and net.scale != scale:
        raise EvaluationError(
            f"{name or net.name} enlarges by {net.scale} only, not by {scale:g}; "
            f"give scale {net.scale} or a continuous model"
        )


def _clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def psnr_by(rule: str) -> Callable[[Tensor, Tensor, int], float]:
    if rule not in RULES:
        raise EvaluationError(f"rule is {rule}; give one of: {', '.join(RULES)}")
    return RULES[rule]


@torch.inference_mode()
def enlarge(net: Network | None, lr: Tensor, size: Sequence[int], ensemble: bool) -> Tensor:
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
