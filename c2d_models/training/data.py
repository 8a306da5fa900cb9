"""The images of a training run: which files train, which are held out, and what is scored on them.

`data` and, where LR files were made by something else than bicubic reduction, `lr_data` of the
configuration are turned into batches for the steps and LR/HR crops for validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import ConfigError, DataError
from ..images import resize, sets
from .batches import Batches, ContinuousBatches, DiscreteBatches
from .config import TrainConfig
from .degradation import Degradations, Span

Pair = tuple[Tensor, Tensor]
"""LR and HR, uint8 (3, H, W)."""

SMALLEST_HELD_OUT = 24
"""HR pixels: at x8, where 8 pixels at each side are not scored, 8 remain."""


@dataclass(frozen=True)
class TrainingData:
    """The data that a run reads.

    Attributes:
        batches: of the photographs that train.
        held_out: the files that never train and can be read.
        validation: for each scale, pairs of centre crops of held-out photographs.
        left_out: a sentence for each image that cannot be read.
    """

    batches: Batches
    held_out: list[Path]
    validation: dict[float, list[Pair]]
    left_out: list[str]


def read(config: TrainConfig) -> TrainingData:
    """Read and decode all images of a configuration.

    Raises:
        DataError: no images, one that is too small, or an LR file that is missing or does not fit.
        ConfigError: no held-out photograph can be read.
    """
    files, lr_files = _find(config)
    training, held_out = sets.split(files)
    batches = _batches(config, training, lr_files)
    if lr_files is None:
        held_out, photos, unread = sets.read_all(held_out)
        _check_sizes(held_out, photos)
        photos = [centre_crop(photo, config.validation_crop) for photo in photos]
        photos = [photo.clone() for photo in photos[: config.validation_images]]
        scales = (2.0, 3.0, 4.0) if config.scale is None else (float(config.scale),)
        validation = {scale: [resize.lr_pair(photo, scale) for photo in photos] for scale in scales}
        if config.degradations is not None:
            validation = {
                scale: [
                    degraded_pair(pair, config.degradations, (config.seed, number))
                    for number, pair in enumerate(pairs)
                ]
                for scale, pairs in validation.items()
            }
    else:
        held_out, pairs, unread = sets.read_all(held_out, partial(_read_pair, config, lr_files))
        _check_sizes(held_out, [hr for _, hr in pairs])
        crops = [
            centre_crops(pair, config.factor, config.validation_crop)
            for pair in pairs[: config.validation_images]
        ]
        validation = {float(config.factor): crops}
    if unread and not held_out:
        raise ConfigError(f"no held-out photograph can be read; the first: {unread[0]}")
    return TrainingData(batches, held_out, validation, batches.left_out + unread)


def _find(config: TrainConfig) -> tuple[list[Path], dict[Path, Path] | None]:
    """All HR files and, with `lr_data`, the LR file of each."""
    if config.lr_data is None:
        return sets.list_images(config.data), None
    lr_files: dict[Path, Path] = {}
    for hr_folder, lr_folder in zip(config.data, config.lr_data, strict=True):
        hr, lr, _ = sets.pair_files(hr_folder, lr_folder, config.factor)
        lr_files |= {file: reduced for file, reduced in zip(hr, lr, strict=True) if reduced}
    return list(lr_files), lr_files


def _batches(
    config: TrainConfig, files: list[Path], lr_files: Mapping[Path, Path] | None
) -> Batches:
    batches: Callable[..., Batches]
    if config.stage == "continuous":
        scale = (1.0, config.max_scale)
        batches = partial(ContinuousBatches, files, queries=config.queries, scale=scale)
    else:
        batches = partial(DiscreteBatches, files, scale=config.factor, lr_files=lr_files)
    return batches(
        patch=config.patch,
        batch=config.batch,
        seed=config.seed,
        augmentation=config.augmentation,
        degradations=config.degradations,
    )


def _read_pair(config: TrainConfig, lr_files: Mapping[Path, Path], file: Path) -> Pair:
    return sets.read_pair(file, lr_files[file], config.factor)


def _check_sizes(files: list[Path], photos: list[Tensor]) -> None:
    for file, photo in zip(files, photos, strict=True):
        height, width = photo.shape[-2:]
        if min(height, width) < SMALLEST_HELD_OUT:
            raise DataError(
                f"{file} is {width}x{height}; a held-out photograph needs at least "
                f"{SMALLEST_HELD_OUT}x{SMALLEST_HELD_OUT}: remove it"
            )


def centre_crop(image: Tensor, side: int) -> Tensor:
    """The middle `side` x `side` pixels of (3, H, W), in multiples of 12 for x2, x3 and x4."""
    height, width = (min(length, side) // 12 * 12 for length in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


def centre_crops(pair: Pair, scale: int, side: int) -> Pair:
    """The middle of LR (3, H, W) and of HR, at most `side` HR pixels a side, on the same grid."""
    lr, hr = pair
    height, width = (min(length, side // scale) for length in lr.shape[-2:])
    top, left = (lr.shape[-2] - height) // 2, (lr.shape[-1] - width) // 2
    lr, hr = (
        image[:, top * s : (top + height) * s, left * s : (left + width) * s].clone()
        for image, s in ((lr, 1), (hr, scale))
    )
    return lr, hr


def degraded_pair(pair: Pair, degradations: Degradations, seed: tuple[int, ...]) -> Pair:
    """The pair with another LR image of the same size, made from HR by what `seed` draws."""
    lr, hr = pair
    rng = np.random.default_rng(seed)
    degradation = degradations.draw(rng)
    if degradation is None:
        return pair
    rows, columns = (
        Span(small, 0.0, large / small)
        for small, large in zip(lr.shape[-2:], hr.shape[-2:], strict=True)
    )
    return degradation.reduce(hr, (rows, columns), rng).to(lr.dtype), hr
