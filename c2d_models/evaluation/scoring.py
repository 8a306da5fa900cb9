"""The score of one network on one image set at one scale."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    score = Scorer(net, scale, name or title(net), ensemble, rule)
    pairs = Pairs.find(hr_folder, lr_folder, scale)
    shown = track(
        pairs,
        f"{score.name} {pairs.dataset} x{scale:g}",
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )
    return score.result(pairs, [score(*files) for files in shown])


@dataclass(frozen=True)
class Pairs:
    """The files of a set at one scale: HR, and LR or None; in order."""

    dataset: str
    files: tuple[tuple[Path, Path | None], ...]

    @classmethod
    def find(
        cls, hr_folder: str | Path | Sequence[Path], lr_folder: str | Path | None, scale: float
    ) -> Pairs:
        """As `evaluate` takes folders. Raises DataError."""
        hr_files, lr_files, dataset = pair_files(hr_folder, lr_folder, scale)
        return cls(dataset, tuple(zip(hr_files, lr_files, strict=True)))

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Path, Path | None]]:
        return iter(self.files)


class Scorer:
    """Scores single images of one network at one scale, and joins them; arguments as `evaluate`."""

    def __init__(
        self, net: Network | None, scale: float, name: str, ensemble: bool, rule: str
    ) -> None:
        self.net, self.scale, self.name, self.rule = net, scale, name, rule
        self.ensemble = ensemble and net is not None
        self.psnr = psnr_by(rule)
        self.border = math.ceil(scale)
        self.device = torch.device("cpu") if net is None else next(net.parameters()).device
        self._warm = net is None

    def __call__(self, hr_file: Path, lr_file: Path | None) -> ImageScore | str:
        """The score of one image, or the sentence that says why it cannot be read.

        Raises:
            DataError: an image that cannot be scored, or an output that is not what it must be.
        """
        try:
            lr, hr = read_pair(hr_file, lr_file, self.scale)
        except ImageError as error:
            return str(error)
        if not self._warm:  # an image's time does not include what is made once
            enlarge(self.net, lr.to(self.device), hr.shape[-2:], ensemble=False)
            self._warm = True
        start = _clock(self.device)
        sr = enlarge(self.net, lr.to(self.device), hr.shape[-2:], self.ensemble)
        seconds = _clock(self.device) - start
        if sr.shape != hr.shape or not torch.isfinite(sr).all():
            raise DataError(
                f"{self.name} made an image of shape {tuple(sr.shape)} from {hr_file.name}, or "
                f"one that is not finite; expected {tuple(hr.shape)}"
            )
        sr = sr.cpu()
        try:
            psnr, ssim = self.psnr(sr, hr, self.border), ssim_y(sr, hr, self.border)
        except ArgumentError as error:
            raise DataError(f"{hr_file} cannot be scored: {error}") from error
        return ImageScore(hr_file.stem, psnr, ssim, seconds)

    @property
    def device_name(self) -> str:
        """As tables give it."""
        gpu = self.device.type != "cpu"
        return torch.cuda.get_device_name(self.device) if gpu else "cpu"

    def result(
        self, pairs: Pairs, scored: Sequence[ImageScore | str], device: str | None = None
    ) -> Result:
        """The set's result from what each of its pairs gave, on another device if one is named.

        Raises DataError if no image was read.
        """
        left_out = tuple(each for each in scored if isinstance(each, str))
        scores = tuple(each for each in scored if isinstance(each, ImageScore))
        if not scores:
            raise DataError(f"no image of {pairs.dataset} can be read; the first: {left_out[0]}")
        net, scale = self.net, self.scale
        runs = 8 if self.ensemble else 1
        return Result(
            model=self.name,
            params=0 if net is None else complexity.parameters(net),
            gmacs=0.0 if net is None else complexity.gmacs(net, scale=scale) * runs,
            dataset=pairs.dataset,
            scale=float(scale),
            rule=self.rule,
            border=self.border,
            lr="imresize" if pairs.files[0][1] is None else "files",
            ensemble=self.ensemble,
            device=device or self.device_name,
            images=scores,
            left_out=left_out,
        )


def title(net: Network | None) -> str:
    """A network's name in tables."""
    return BICUBIC if net is None else net.name or type(net).__name__


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
