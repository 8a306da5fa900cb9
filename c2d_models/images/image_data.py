"""A picture in memory, as it is read and as it is handed to a writer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .metadata import Metadata


@dataclass
class ImageData:
    """A picture in memory.

    Attributes:
        pixels: (H, W, C) uint8 or uint16, C = 1 (grey) or 3 (RGB), upright: the EXIF orientation
            has been applied.
        alpha: (H, W) of the same type, or None. Colours are not multiplied by it.
        icc: the ICC profile of `pixels`, or None for sRGB.
        format: "png", "jpg", "webp", "tiff", "gif", "avif", "bmp" ...: what the file was (by
            content, not by name).
        lossy: whether the file's compression has left traces in the pixels (JPEG, lossy WebP).
        metadata: what the file says about the picture.
        notes: sentences for the user about what was left out or mended while reading.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    format: str = "png"
    lossy: bool = False
    metadata: Metadata = field(default_factory=Metadata, repr=False)
    notes: list[str] = field(default_factory=list)

    @property
    def bit_depth(self) -> int:
        """Bits per sample: 8 or 16."""
        return 8 * self.pixels.dtype.itemsize
