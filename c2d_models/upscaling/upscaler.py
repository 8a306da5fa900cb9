"""A network and the settings of a run, and what they do with one picture's samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..devices import choose_device, memory_budget
from ..errors import UpscaleError
from ..networks.network import Network
from . import tiling
from .models import Models, title
from .storage import allocate
from .target import MAX_SCALE, PASS_SCALE, Target, common_factor, passes
from .transparency import spread_colours

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MARGIN = 8
"""LR pixels of mirror image around a picture.

With them a flat page stays flat to half a level up to its border, where the shipped x4 network is
18 levels off without, and the continuous one 1.2; 16 pixels gain nothing more.
"""
_ROWS = 256
"""How many rows go out at once."""

Progress = Callable[[float], None]
"""Told the fraction that is done, in [0, 1]."""
Rows = Callable[[int, np.ndarray], None]
"""Takes (first row, (h, W_out, channels)) of the output; rows may come again."""


@dataclass
class Upscaler:
    """Enlarges pictures with the settings of a run; `load` makes one.

    Attributes:
        target: the size that pictures are brought to.
        models: the networks.
        device: where they compute.
        dtype: float32, or the type the network computes in under autocast. The bilinear part of
            the output and the blending stay in float32: a half-precision one would band.
        tile: side in LR pixels, 0 for no tiles, None for as large as memory allows.
    """

    target: Target
    models: Models
    device: torch.device
    dtype: torch.dtype = torch.float32
    tile: int | None = None

    @classmethod
    def load(
        cls,
        target: Target | None = None,
        model: str | Path | Network | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        tile: int | str | None = None,
    ) -> Upscaler:
        """Check the settings, then load the model; arguments as in `upscale`.

        Without a target a discrete model enlarges by its own factor.
        """
        place = choose_device(device)
        kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if kind is None or kind not in DTYPES.values():
            raise UpscaleError(f"dtype is {dtype}; use {', '.join(DTYPES)}.")
        side = check_tile(tile)
        models = Models(model, place)
        target = target or Target()
        if models.asked is not None and target == Target():
            target = Target(float(models.asked.scale or PASS_SCALE))
        upscaler = cls(target, models, place, kind, side)
        if target.factor is not None:  # known before any picture, and with it the models
            upscaler.plan(10_000, 10_000)
        return upscaler

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H_out, W_out) of an image; UpscaleError if the target is out of its reach."""
        return self.target.size(height, width)

    def plan(
        self, height: int, width: int, lossy: bool = False
    ) -> list[tuple[Network, tuple[int, int]]]:
        """The network of each pass, and the size that it makes.

        Raises:
            UpscaleError: the target is out of reach, or not for the model that was asked for.
        """
        steps = self._steps(height, width, lossy)
        nets = [self.models.network(factor, traces) for factor, traces, _ in steps]
        for net, (factor, _, _) in zip(nets, steps, strict=True):
            if net.scale is not None and net.scale != factor:
                raise UpscaleError(self._unreachable(net, height, width))
        return [(net, size) for net, (_, _, size) in zip(nets, steps, strict=True)]

    def chosen(self, height: int, width: int, lossy: bool) -> list[str]:
        """The shipped models that enlarge such an image, in order; none if one was asked for."""
        if self.models.asked is not None:
            return []
        steps = self._steps(height, width, lossy)
        names = [self.models.choice(factor, traces) for factor, traces, _ in steps]
        return list(dict.fromkeys(names))

    def _steps(
        self, height: int, width: int, lossy: bool
    ) -> list[tuple[float | None, bool, tuple[int, int]]]:
        """Each pass: its factor, whether compression has left traces in its input, and its size."""
        wanted = self.output_size(height, width)
        asked = self.models.asked
        step = (asked.scale if asked else None) or PASS_SCALE
        sizes = passes((height, width), wanted, max(step, 2))
        pairs = zip([(height, width), *sizes], sizes, strict=False)
        return [
            (common_factor(before, after), lossy and number == 0, after)
            for number, (before, after) in enumerate(pairs)
        ]

    def _unreachable(self, net: Network, height: int, width: int) -> str:
        """Why a discrete network cannot make what was asked for."""
        assert net.scale is not None
        if net.scale == 1:
            return (
                f"{title(net)} restores pictures at their size: leave out the scale and the size."
            )
        if (factor := self.target.factor) is not None:
            powers = [net.scale**k for k in (2, 3, 4) if net.scale**k <= MAX_SCALE]
            more = f" (in passes by {' and '.join(map(str, powers))})" if powers else ""
            return (
                f"{title(net)} enlarges by {net.scale} only{more}; for {factor:g} take a "
                "continuous model (c2d models lists them)."
            )
        high, wide = self.output_size(height, width)
        return (
            f"{title(net)} makes {net.scale * width}x{net.scale * height} of this image; for "
            f"{wide}x{high} take a continuous model (c2d models lists them)."
        )

    def run(
        self,
        pixels: np.ndarray,
        alpha: np.ndarray | None,
        sink: Rows,
        dtype: np.dtype,
        *,
        lossy: bool = False,
        folder: Path | None = None,
        progress: Progress = lambda fraction: None,
    ) -> None:
        """Enlarge pixels (H, W, 1 or 3), and alpha (H, W) if there is one.

        `sink` takes (first row, (h, W_out, channels) of `dtype`), alpha as the last channel.
        Integers span their whole range, floats [0, 1]. A grey picture, also one of three equal
        channels, goes through the network as three, whose mean comes out; so does alpha, unless it
        is flat. `lossy` says whether compression has left traces, which a model for such files
        removes. `folder` and `progress` are those of `tiling.run`.

        Raises:
            UpscaleError: the network's numbers overflowed in half precision.
        """
        steps = self.plan(pixels.shape[0], pixels.shape[1], lossy)
        sizes = [pixels.shape[:2], *(size for _, size in steps)]
        shares = _shares(progress, [height * width for height, width in sizes[:-1]])
        between = np.dtype(np.float32 if dtype.kind == "f" else np.uint16)
        for (net, size), share in zip(steps[:-1], shares, strict=False):
            channels = pixels.shape[2] + (alpha is not None)
            held = _array((*size, channels), between, folder)
            self._pass(net, size, pixels, alpha, partial(_put, held), between, folder, share)
            pixels = held[..., : pixels.shape[2]]
            alpha = held[..., -1] if alpha is not None else None
        net, size = steps[-1]
        self._pass(net, size, pixels, alpha, sink, dtype, folder, shares[-1])

    def _pass(
        self,
        net: Network,
        size: tuple[int, int],
        pixels: np.ndarray,
        alpha: np.ndarray | None,
        sink: Rows,
        dtype: np.dtype,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        """One enlargement of colours and alpha by one network."""
        if alpha is None:
            self._enlarge(net, size, pixels, sink, dtype, folder, progress)
            return
        pixels = spread_colours(pixels, alpha)
        if (alpha == alpha[0, 0]).all():
            flat = alpha[:1, :1].astype(np.float32) / np.float32(full_scale(alpha.dtype))
            large = np.broadcast_to(_quantise(flat, dtype), size)
        else:
            for_alpha, progress = _shares(progress, [1, 1])
            held = _array((*size, 1), dtype, folder)
            plane = alpha[..., None]
            self._enlarge(net, size, plane, partial(_put, held), dtype, folder, for_alpha)
            large = held[..., 0]

        def join(top: int, rows: np.ndarray) -> None:
            sink(top, np.concatenate([rows, large[top : top + len(rows), :, None]], axis=2))

        self._enlarge(net, size, pixels, join, dtype, folder, progress)

    def _enlarge(
        self,
        net: Network,
        size: tuple[int, int],
        pixels: np.ndarray,
        sink: Rows,
        dtype: np.dtype,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        """Send (H, W, 1 or 3) pixels through a network, cut as memory demands."""
        height, width, channels = pixels.shape
        full = full_scale(pixels.dtype)
        grey = channels == 1 or bool((pixels == pixels[..., :1]).all())
        if not grey and net.in_channels == 1:
            self._enlarge_each(net, size, pixels, sink, dtype, folder, progress)
            return
        colours, entries = 1 if grey else 3, net.in_channels

        def source(y0: int, y1: int, x0: int, x1: int) -> Tensor:
            part = pixels[y0:y1, x0:x1, :colours].astype(np.float32) / np.float32(full)
            return (
                torch.from_numpy(part)
                .to(self.device)
                .permute(2, 0, 1)
                .expand(entries, -1, -1)[None]
            )

        def deliver(top: int, rows: Tensor) -> None:
            rows = rows.float()
            if not torch.isfinite(rows).all():
                raise UpscaleError(
                    f"{title(net)} overflows in {str(self.dtype).removeprefix('torch.')} on this "
                    "image: use dtype bfloat16 or float32."
                )
            if grey:
                rows = rows.mean(dim=0, keepdim=True)
            samples = _quantise(rows.clamp(0, 1).permute(1, 2, 0).cpu().numpy(), dtype)
            sink(top, samples if len(rows) == channels else np.repeat(samples, channels, axis=2))

        margin = MARGIN if net.record else 0  # others' networks: as their authors run them
        budget = memory_budget(self.device)
        plan = tiling.Plan.fit(net, height + 2 * margin, width + 2 * margin, budget, self.tile)
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext():
            tiling.run(
                net,
                source,
                deliver,
                (height, width),
                size,
                plan,
                margin=margin,
                folder=folder,
                progress=progress,
            )

    def _enlarge_each(
        self,
        net: Network,
        size: tuple[int, int],
        pixels: np.ndarray,
        sink: Rows,
        dtype: np.dtype,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        """Colours through a network for grey pictures, each channel by itself."""
        channels = pixels.shape[2]
        held = _array((*size, channels), dtype, folder)
        for place, share in enumerate(_shares(progress, [1] * channels)):
            plane, into = pixels[..., place : place + 1], held[..., place : place + 1]
            self._enlarge(net, size, plane, partial(_put, into), dtype, folder, share)
        for top in range(0, size[0], _ROWS):
            sink(top, held[top : top + _ROWS])


def check_tile(tile: int | str | None) -> int | None:
    """The side asked for, or None for auto."""
    if tile is None or tile == "auto":
        return None
    try:
        side = int(tile)
    except ValueError:
        side = -1
    if side < 0:
        raise UpscaleError(f"tile is {tile}; give a side in pixels, 0 for no tiles, or auto.")
    return side


def full_scale(dtype: np.dtype) -> int:
    """The number that stands for 1.0."""
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _quantise(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats in [0, 1] to `dtype`, rounded to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return (values * full_scale(dtype) + 0.5).astype(dtype)


def _array(shape: tuple[int, ...], dtype: np.dtype, folder: Path | None) -> np.ndarray:
    """`storage.allocate` for NumPy, whose uint16 not every torch has."""
    stand_in = {1: torch.uint8, 2: torch.int16, 4: torch.float32, 8: torch.float64}[dtype.itemsize]
    return allocate(shape, stand_in, folder).numpy().view(dtype)


def _put(held: np.ndarray, top: int, rows: np.ndarray) -> None:
    held[top : top + len(rows)] = rows


def _shares(progress: Progress, work: Sequence[float]) -> list[Progress]:
    """A callable for each part of the work, told the fraction of that part alone."""
    total = sum(work)

    def share(before: float, size: float) -> Progress:
        return lambda fraction: progress((before + fraction * size) / total)

    return [share(sum(work[:i]), size) for i, size in enumerate(work)]
