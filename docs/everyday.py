"""Draws docs/everyday.jpg: degraded crops of the example photo, enlarged in three ways.

python docs/everyday.py

A row for each degradation; from left to right: bicubic, the model for lossless files, the one for
photographs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyvips
import torch
from torch import Tensor

from c2d_models import upscale
from c2d_models.images.degradations import add_gaussian_noise, compress
from c2d_models.images.resize import imresize
from c2d_models.images.sets import read_rgb

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("hiet_swinir_continuous", "hiet_swinir_photo")
CROPS = [(100, 390), (180, 270)]  # top and left in the x4 picture, one for each column of rows
SIDE, GAP = 200, 6


def noisy(lr: Tensor) -> Tensor:
    """Gaussian noise of 15 levels."""
    levels = add_gaussian_noise(lr.float(), 15, np.random.default_rng(0))
    return levels.round().clamp(0, 255).to(torch.uint8)


ROWS: list[tuple[Callable[[Tensor], Tensor], ...]] = [
    (lambda lr: compress(lr, "jpg", 40), lambda lr: compress(lr, "jpg", 70)),
    (lambda lr: compress(lr, "webp", 40), noisy),
]


def strip(lr: Tensor, top: int, left: int) -> np.ndarray:
    """The crop of three enlargements, beside each other."""
    array = lr.permute(1, 2, 0).contiguous().numpy()
    large = [imresize(lr, 4).permute(1, 2, 0).numpy()]
    large += [upscale(array, scale=4, model=name) for name in MODELS]
    gap = np.full((SIDE, GAP, 3), 255, np.uint8)
    parts = [picture[top : top + SIDE, left : left + SIDE] for picture in large]
    return np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=1)


def main() -> None:
    lr = read_rgb(ROOT / "examples" / "photo.png")
    rows = []
    for degradations in ROWS:
        strips = [
            strip(degrade(lr), *crop) for degrade, crop in zip(degradations, CROPS, strict=True)
        ]
        gap = np.full((SIDE, 3 * GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([strips[0], gap, strips[1]], axis=1))
    between = np.full((3 * GAP, rows[0].shape[1], 3), 255, np.uint8)
    drawing = np.concatenate([rows[0], between, rows[1]], axis=0)
    pyvips.Image.new_from_array(drawing).write_to_file(str(ROOT / "docs" / "everyday.jpg"), Q=90)


if __name__ == "__main__":
    main()
