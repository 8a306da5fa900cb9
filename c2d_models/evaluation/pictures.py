"""Pictures of an evaluation: quality over cost, crops side by side, local attribution maps.

`plan` chooses what to show before anything is scored, so that a mistake is reported at once; `draw`
shows it afterwards. Drawn by matplotlib, which is imported here and by nothing else of the package.
"""

from __future__ import annotations

import importlib.util
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError, EvaluationError, ImageError
from ..files import write_whole
from ..images import sets
from ..images.metrics import to_y
from ..networks.network import Network
from .attribution import STEPS, WINDOW, diffusion_index, local_attribution
from .results import BICUBIC, Result
from .scoring import enlarge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CROP = 96  # side of the region that is looked for, HR pixels
_STRIDE = 8  # pixels between candidate positions
_CONTEXT = 64  # side of the LR piece whose attribution is shown
_LARGEST_POINT = 500.0  # area of the network with most parameters, square points
_DPI = 150


@dataclass(frozen=True)
class Excerpt:
    """A square of one image of a set: number and name of the image, the pair, the place in HR."""

    index: int
    name: str
    lr: Tensor
    hr: Tensor
    scale: float
    left: int
    top: int
    size: int

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """The square of an image (3, H, W)."""
        down = slice(self.top, self.top + self.size)
        return slice(None), down, slice(self.left, self.left + self.size)


@dataclass(frozen=True)
class Row:
    """One row of a picture: a region, and the results on its set, bicubic's first."""

    region: Excerpt
    results: Sequence[Result]

    @property
    def title(self) -> str:
        return f"{self.results[0].dataset} x{self.region.scale:g}"

    @property
    def place(self) -> str:
        region = self.region
        return f"{self.title}, {region.name}\n{region.left},{region.top},{region.size}"


def plan(
    folder: str | Path,
    folders: Sequence[str | Path],
    scales: Sequence[float],
    crop: tuple[int, int, int] | None = None,
) -> list[Excerpt]:
    """Make the folder of the pictures and choose a region of each set at each scale.

    Args:
        folder: of the pictures.
        folders: image sets as `evaluation.evaluate` takes them.
        crop: (x, y, size) in HR pixels; None looks for the square with most edges. Of the images
            that have such a square, the one with most edges in it is shown.

    Raises:
        EvaluationError: matplotlib is missing, the folder cannot be made, or no image of a set
            holds the crop.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError("pictures need matplotlib; install it with: pip install matplotlib")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(
            f"pictures' folder {folder} cannot be made: {error.strerror}"
        ) from error
    return [_choose(images, scale, crop) for images, scale in product(folders, scales)]


def draw(
    folder: str | Path,
    regions: Sequence[Excerpt],
    results: Sequence[Result],
    nets: dict[str, Network | None],
    *,
    ensemble: bool = False,
) -> list[Path]:
    """Draw psnr_gmacs.png, crops.png and, where there is a network, attribution.png.

    Args:
        regions: what `plan` chose, one for each set and scale.
        results: of all nets on the first set and scale, then on the second, and so on.
        nets: by their names; bicubic's is None.
        ensemble: as in `evaluation.evaluate`, for the crops.

    Returns:
        The files, in the folder.
    """
    count = len(nets)
    rows = [Row(r, results[i * count : (i + 1) * count]) for i, r in enumerate(regions)]
    labels = dict(zip(nets, short_names(list(nets)), strict=True))
    figures = {"crops": crops(rows, nets, labels, ensemble)}
    if any(nets.values()):
        figures["psnr_gmacs"] = psnr_gmacs(rows, labels)
        figures["attribution"] = attribution(rows, nets, labels)
    files = []
    for name, figure in figures.items():
        files.append(Path(folder) / f"{name}.png")
        whole = io.BytesIO()
        figure.savefig(whole, metadata={"Software": None}, format="png")
        write_whole(files[-1], whole.getbuffer())
    return files


def psnr_gmacs(rows: Sequence[Row], labels: dict[str, str]) -> Figure:
    """PSNR over multiply-adds, areas by parameters (figure 5 of the C2D-ISR paper)."""
    columns = min(len(rows), 3)
    lines = math.ceil(len(rows) / columns)
    figure = _figure(4.6 * columns, 3.6 * lines + 0.3 * len(labels))
    grid = figure.subplots(lines, columns, squeeze=False).flat
    most = max(result.params for row in rows for result in row.results)
    handles = {}
    for axes, row in zip(grid, rows, strict=False):
        for number, result in enumerate(row.results):
            if result.model == BICUBIC:
                line = axes.axhline(result.psnr_y, color="grey", linestyle="--", linewidth=1)
                handles["bicubic"] = line
                continue
            area, colour = _LARGEST_POINT * result.params / most, f"C{(number - 1) % 10}"
            axes.scatter(result.gmacs, result.psnr_y, s=area, color=colour, alpha=0.7, zorder=2)
            # the legend's mark has one size, so that it says the colour alone
            label = f"{labels[result.model]}, {_thousands(result.params)} parameters"
            handles[label] = axes.plot([], [], "o", color=colour)[0]
        costs = [result.gmacs for result in row.results if result.gmacs > 0]
        if costs and max(costs) > 10 * min(costs):
            axes.set_xscale("log")
        axes.margins(0.3)
        axes.set(title=row.title, xlabel="GMACs to 1280x720", ylabel=f"PSNR-Y, dB{_rule(row)}")
        axes.grid(alpha=0.3)
    for axes in list(grid):  # what is left of the last line
        axes.set_axis_off()
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        fontsize=8,
        title="area of a point: parameters",
        title_fontsize=8,
    )
    return figure


def crops(
    rows: Sequence[Row],
    nets: dict[str, Network | None],
    labels: dict[str, str],
    ensemble: bool,
) -> Figure:
    """The region of HR, of bicubic and of each network, with the whole image's PSNR beneath."""
    figure, grid = _panels(rows, ["HR", *labels.values()])
    for row, line in zip(rows, grid, strict=True):
        region = row.region
        line[0].imshow(_pixels(region.hr[region.inside]))
        line[0].set_xlabel(f"the image's PSNR-Y{_rule(row)}:", fontsize=8)
        for axes, net, result in zip(line[1:], nets.values(), row.results, strict=True):
            sr = enlarge(net, _like(net, region.lr), region.hr.shape[-2:], ensemble)
            axes.imshow(_pixels(sr[region.inside]))
            axes.set_xlabel(f"{result.images[region.index].psnr_y:.2f} dB", fontsize=9)
    return figure


def attribution(
    rows: Sequence[Row], nets: dict[str, Network | None], labels: dict[str, str]
) -> Figure:
    """Which LR pixels each network used for the framed window (figure 4 of the C2D-ISR paper).

    Red is the square root of the share of the largest: faint ones are to be seen.
    """
    from matplotlib.patches import Rectangle

    named = {labels[name]: net for name, net in nets.items() if net is not None}
    figure, grid = _panels(rows, ["LR, window framed", *named])
    for row, line in zip(rows, grid, strict=True):
        scale = row.region.scale
        lr, (left, top, size) = _around(row.region)
        line[0].imshow(_pixels(lr))
        corner = (left / scale - 0.5, top / scale - 0.5)
        line[0].add_patch(Rectangle(corner, size / scale, size / scale, fill=False, color="red"))
        line[0].set_xlabel("diffusion index:", fontsize=8)
        grey = to_y(lr).numpy()
        for axes, net in zip(line[1:], named.values(), strict=True):
            image = _like(net, lr).float() / 255.0
            window = (top, left, size)
            used = local_attribution(net, image, window, steps=STEPS, scale=scale).cpu()
            share = (used.abs() / used.abs().max().clamp_min(1e-30)).sqrt().numpy()
            axes.imshow(grey, cmap="gray", vmin=-200, vmax=255)  # light, under the red
            axes.imshow(np.ones_like(share), cmap="Reds", vmin=0, vmax=1.3, alpha=share)
            axes.set_xlabel(f"{diffusion_index(used):.1f}", fontsize=9)
    return figure


def short_names(names: Sequence[str]) -> list[str]:
    """Files by as many last parts of their paths as tell them apart, without .safetensors."""
    parts = [Path(name.removesuffix(".safetensors")).parts for name in names]
    deepest = max(map(len, parts))
    for depth in range(1, deepest + 1):
        short = ["/".join(part[-depth:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return list(names)


# Regions -------------------------------------------------------------------------------------


def _choose(images: str | Path, scale: float, crop: tuple[int, int, int] | None) -> Excerpt:
    best, most, largest, unread = None, -1.0, (0, 0), None
    hr_files, lr_files, dataset = sets.pair_files(images, None, scale)
    index = -1  # among the images that can be read, which alone are scored
    for hr_file, lr_file in zip(hr_files, lr_files, strict=True):
        try:
            lr, hr = sets.read_pair(hr_file, lr_file, scale)
        except ImageError as error:
            unread = unread or error
            continue
        index += 1
        height, width = hr.shape[-2:]
        x, y, size = crop or (0, 0, min(CROP, height, width))
        largest = max(largest, (width, height))
        if size < 2 or x + size > width or y + size > height:
            continue
        detail = _detail(hr if crop is None else hr[:, y : y + size, x : x + size], size)
        if detail.max() > most:
            most = detail.max().item()
            if crop is None:
                y, x = _most(detail)
            best = Excerpt(index, hr_file.stem, lr, hr, float(scale), x, y, size)
    if index < 0:
        raise DataError(f"no image of {dataset} can be read; the first: {unread}")
    if best is None:
        raise EvaluationError(
            f"no image of {dataset} at scale {scale:g} holds the crop {x},{y},{size} (x,y,size; at "
            f"least 2 pixels); the widest is {largest[0]}x{largest[1]}"
        )
    return best


def _detail(image: Tensor, size: int) -> Tensor:
    """Mean gradient of luma in squares of `size` pixels at every `_STRIDE`-th place."""
    y = to_y(image)
    down, right = y[1:, :-1] - y[:-1, :-1], y[:-1, 1:] - y[:-1, :-1]
    lengths = torch.hypot(down, right)
    return F.avg_pool2d(lengths[None, None], size - 1, _STRIDE)[0, 0]


def _most(detail: Tensor) -> tuple[int, int]:
    """(y, x) of the square with most edges."""
    row, column = divmod(int(detail.argmax()), detail.shape[1])
    return row * _STRIDE, column * _STRIDE


def _around(region: Excerpt) -> tuple[Tensor, tuple[int, int, int]]:
    """An LR piece about the window with most edges in the region, and (left, top, size) there.

    The window is in pixels of the enlarged piece.
    """
    piece, window = [], []
    size = min(WINDOW, region.size)
    y, x = _most(_detail(region.hr[region.inside], size))
    sides = ((region.left + x, region.lr.shape[-1]), (region.top + y, region.lr.shape[-2]))
    for start, side in sides:
        length, middle = min(_CONTEXT, side), (start + size / 2) / region.scale
        first = min(max(round(middle - length / 2), 0), side - length)
        place = round(start - first * region.scale)
        window.append(min(max(place, 0), round(length * region.scale) - size))
        piece.append(slice(first, first + length))
    left, top = window
    return region.lr[:, piece[1], piece[0]], (left, top, size)


# Drawing -------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _panels(rows: Sequence[Row], titles: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """Square panels, an array of Axes: a row for each row, titled at the top, named at the left."""
    figure = _figure(2.1 * len(titles) + 0.4, 2.5 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], titles, strict=True):
        text = textwrap.fill(title.replace("_", "_ ").replace("/", "/ "), 22)
        axes.set_title(text.replace("_ ", "_").replace("/ ", "/"), fontsize=8)
    for line, row in zip(grid, rows, strict=True):
        line[0].set_ylabel(row.place, fontsize=8)
    return figure, grid


def _pixels(image: Tensor) -> np.ndarray:
    """(3, H, W), uint8 or floats in [0, 1], as (H, W, 3) uint8."""
    if image.is_floating_point():
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).cpu().numpy()


def _like(net: Network | None, image: Tensor) -> Tensor:
    return image if net is None else image.to(next(net.parameters()).device)


def _rule(row: Row) -> str:
    rule = row.results[0].rule
    return "" if rule == "papers" else f" (rule {rule})"


def _thousands(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} K"
