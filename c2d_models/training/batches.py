"""Random batches of LR and HR patches out of photographs that are kept in memory.

A batch is a pure function of (seed, step, sample index): any step can be made again, in any
process, without the steps before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..images.resize import nearest_level, resample, resize_taps
from ..images.sets import list_images, orient, read_all, read_pair, read_rgb
from .augmentation import Augmentation, Change, drawing
from .degradation import BLOCK, Degradations, Span


class Batches(ABC):
    """Random LR/HR patches of photographs that are kept in memory as uint8.

    Args:
        source: a folder, several folders, or image files (see `list_images`).
        patch: side of the LR patch in pixels.
        batch: samples per step (of this process).
        seed: of every random choice.
        augmentation: of the patches' colours; none by default.
        degradations: of the LR patches beside their reduction; none by default.

    An image that cannot be read is left out; `left_out` holds a sentence about each.

    Raises:
        DataError: no images that can be read, or one smaller than the smallest HR patch.
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        patch: int,
        batch: int,
        seed: int,
        smallest: int,
        augmentation: Augmentation | None = None,
        degradations: Degradations | None = None,
    ) -> None:
        for name, value in (("patch", patch), ("batch", batch)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; give at least 1")
        self.patch, self.batch_size, self.seed = patch, batch, seed
        self.augmentation = augmentation or Augmentation()
        self.degradations = degradations
        self.files, self.images, self.left_out = self._read(list_images(source))
        if not self.files:
            raise DataError(
                f"none of {len(self.left_out)} images can be read; the first: {self.left_out[0]}"
            )
        for file, image in zip(self.files, self.images, strict=True):
            if min(image.shape[-2:]) < smallest:
                raise DataError(
                    f"{file} is {image.shape[-1]}x{image.shape[-2]}; patches of {patch} pixels "
                    f"need at least {smallest}x{smallest}: remove it or take a smaller patch"
                )

    def _read(self, files: list[Path]) -> tuple[list[Path], list[Tensor], list[str]]:
        """As `read_all`: the files, their uint8 images (3, H, W), and why others are left out."""
        return read_all(files, read_rgb)

    @abstractmethod
    def sample(self, step: int, index: int) -> dict[str, Tensor]:
        """Sample number `index` of step `step`: a batch's entries without their first axis."""

    def batch(self, step: int, rank: int = 0) -> dict[str, Tensor]:
        """The batch of step `step`; process `rank` of several takes samples of its own."""
        first = rank * self.batch_size
        samples = [self.sample(step, first + i) for i in range(self.batch_size)]
        return {key: torch.stack([each[key] for each in samples]) for key in samples[0]}

    def _draw(self, step: int, index: int) -> tuple[np.random.Generator, int, Change]:
        """The sample's own random generator, its photograph's place in `images`, its change."""
        rng = np.random.default_rng((self.seed, step, index))
        return rng, int(rng.integers(len(self.images))), self.augmentation.draw(rng)

    def _patches(
        self, rng: np.random.Generator, image: Tensor, side: int, change: Change
    ) -> tuple[Tensor, Tensor]:
        """A random HR patch (uint8) and its LR patch (float32), rotated and flipped alike.

        LR pixels near the patch's edge see the photograph beyond it; only the photograph's own
        edge is mirrored. Flipping afterwards is exact, for the kernel is even.
        """
        if change.drawn:
            image = drawing(rng, side)
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[-2:])
        degradation = self.degradations.draw(rng) if self.degradations else None
        if degradation is None:
            lr = self._reduced(image, (top, left), side, change)
        else:
            pitch = side / self.patch
            # The patch begins anywhere in a block, as the parts of a photograph do.
            before = [int(rng.integers(BLOCK, 2 * BLOCK)) for _ in range(2)]
            spans = (
                Span(self.patch + before[0] + BLOCK, top - before[0] * pitch, pitch),
                Span(self.patch + before[1] + BLOCK, left - before[1] * pitch, pitch),
            )
            lr = degradation.reduce(change.recolour(image), spans, rng)
            lr = lr[:, before[0] : before[0] + self.patch, before[1] : before[1] + self.patch]
        hr = change.recolour(image[:, top : top + side, left : left + side])
        turn = int(rng.integers(8))
        return orient(hr, turn), orient(lr.div(255.0), turn)

    def _reduced(self, image: Tensor, corner: tuple[int, int], side: int, change: Change) -> Tensor:
        """As imresize reduces uint8, but in float32: (3, patch, patch), whole levels.

        Exact for scales 2 and 4, else within its rounding; a third of the time.
        """
        spans, taps = [], []
        for start, length in zip(corner, image.shape[-2:], strict=True):
            indices, weights = resize_taps(self.patch, self.patch / side, length, origin=start)
            low = indices.min()
            spans.append(slice(low, indices.max() + 1))
            taps.append((indices - low, weights))
        part = change.recolour(image[:, spans[0], spans[1]])
        lr = nearest_level(resample(part.float(), -2, *taps[0]))
        return nearest_level(resample(lr, -1, *taps[1]))


class ContinuousBatches(Batches):
    """Batches at continuous scales: LR patches and HR pixels at random positions within them.

    Each sample draws s ~ U(scale) and takes an HR patch of h = round(patch * s) pixels a side,
    so that its true scale is h / patch on both axes; it is reduced to patch x patch, and `queries`
    different pixels of it are the targets (LIIF, 2012.09161, section 3). A photograph smaller
    than h gives its largest patch.

    `batch(step)` returns float32 tensors
        lr (B, 3, patch, patch) in [0, 1], on the 256 levels of 8 bit;
        coords (B, Q, 2): (y, x) of the target pixels' centres, the patch spanning [-1, 1];
        cell (B, 2) = (2/h, 2/h), a target pixel's size in those units;
        target (B, Q, 3) in [0, 1].
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        patch: int = 64,
        queries: int = 4096,
        scale: tuple[float, float] = (1.0, 4.0),
        batch: int = 16,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        degradations: Degradations | None = None,
    ) -> None:
        if not 1.0 <= scale[0] <= scale[1]:
            raise ConfigError(
                f"scale is {scale}; give (lowest, highest) with 1 <= lowest <= highest"
            )
        smallest = round(patch * scale[0])
        if not 1 <= queries <= smallest**2:
            raise ConfigError(
                f"queries is {queries}; give 1 to {smallest**2}, the pixels of the smallest patch"
            )
        super().__init__(
            source,
            patch=patch,
            batch=batch,
            seed=seed,
            smallest=smallest,
            augmentation=augmentation,
            degradations=degradations,
        )
        self.queries, self.scale = queries, scale

    def sample(self, step: int, index: int) -> dict[str, Tensor]:
        rng, number, change = self._draw(step, index)
        image = self.images[number]
        side = min(round(self.patch * rng.uniform(*self.scale)), *image.shape[-2:])
        hr, lr = self._patches(rng, image, side, change)
        chosen = rng.choice(side * side, self.queries, replace=False, shuffle=False)
        y, x = (torch.from_numpy(axis) for axis in np.divmod(chosen, side))
        return {
            "lr": lr,
            "coords": (torch.stack((y, x), -1).double() * 2 + 1).div_(side).sub_(1).float(),
            "cell": torch.full((2,), 2.0 / side),
            "target": hr[:, y, x].T.float().div_(255.0),
        }


class DiscreteBatches(Batches):
    """Batches at one integer scale: whole LR and HR patches.

    `batch(step)` returns float32 tensors lr (B, 3, patch, patch), on the 256 levels of 8 bit, and
    hr (B, 3, scale * patch, scale * patch), both in [0, 1].

    With `lr_files`, the LR file of each HR file, LR patches are cut out of those files instead of
    being made by bicubic reduction; a pair of which one cannot be read is left out. Raises
    DataError for two that do not belong together by their sizes.
    """

    def __init__(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        scale: int = 4,
        patch: int = 64,
        batch: int = 16,
        seed: int = 0,
        lr_files: Mapping[Path, Path] | None = None,
        augmentation: Augmentation | None = None,
        degradations: Degradations | None = None,
    ) -> None:
        if scale < 1 or scale != int(scale):
            raise ConfigError(f"scale is {scale}; give a whole number of at least 1")
        self.scale, self.lr_files = scale, lr_files
        self.lr_images: list[Tensor] = []
        super().__init__(
            source,
            patch=patch,
            batch=batch,
            seed=seed,
            smallest=patch * scale,
            augmentation=augmentation,
            degradations=degradations,
        )

    def _read(self, files: list[Path]) -> tuple[list[Path], list[Tensor], list[str]]:
        if self.lr_files is None:
            return super()._read(files)
        lr_files, scale = self.lr_files, self.scale
        good, pairs, left_out = read_all(files, lambda hr: read_pair(hr, lr_files[hr], scale))
        self.lr_images = [lr for lr, _ in pairs]
        return good, [hr for _, hr in pairs], left_out

    def sample(self, step: int, index: int) -> dict[str, Tensor]:
        rng, number, change = self._draw(step, index)
        image = self.images[number]
        if self.lr_files is None:
            hr, lr = self._patches(rng, image, self.patch * self.scale, change)
        else:
            hr, lr = self._cut(rng, image, self.lr_images[number])
        return {"lr": lr, "hr": hr.float().div_(255.0)}

    def _cut(self, rng: np.random.Generator, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """A random patch of a pair, rotated and flipped alike: HR uint8, LR float32 in [0, 1]."""
        top, left = (int(rng.integers(length - self.patch + 1)) for length in lr.shape[-2:])
        turn = int(rng.integers(8))
        hr, lr = (
            orient(
                image[:, top * s : (top + self.patch) * s, left * s : (left + self.patch) * s],
                turn,
            )
            for image, s in ((hr, self.scale), (lr, 1))
        )
        return hr, lr.float().div_(255.0)
