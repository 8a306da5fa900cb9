"""Frames as RGB and back: Y'CbCr of BT.601 or BT.709, limited or full range, of 8 bits.

Computed here in float32 rather than by libswscale, whose fast paths are off by several levels. In
4:2:0 and 4:2:2 a chroma sample lies on the left one of two luma columns (MPEG-2's siting, which
H.264 and VP9 mean where they say nothing) and, in 4:2:0, between two rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Weights of red and blue in luma, by matrix."""


@dataclass(frozen=True)
class Coding:
    """How a clip's numbers mean colours.

    Attributes:
        matrix: "bt601" or "bt709".
        full: whether black to white is 0 to 255; else luma is 16 to 235, chroma 16 to 240.
    """

    matrix: str
    full: bool

    @property
    def ranges(self) -> tuple[float, float, float]:
        """Black's level, the span of luma, and of chroma."""
        return (0.0, 255.0, 255.0) if self.full else (16.0, 219.0, 224.0)


def to_rgb(planes: list[np.ndarray], coding: Coding) -> np.ndarray:
    """uint8 planes as uint8 (H, W, 3): Y (H, W), Cb and Cr of that size or halved, or Y alone."""
    black, luma_span, chroma_span = coding.ranges
    y = (planes[0].astype(np.float32) - black) / luma_span
    if len(planes) == 1:
        return _to_bytes(y[..., None].repeat(3, axis=2))
    height, width = y.shape
    cb, cr = (_upsampled(p, height, width) for p in planes[1:])
    cb, cr = ((c - 128.0) / chroma_span for c in (cb, cr))
    kr, kb = KR_KB[coding.matrix]
    red = y + 2 * (1 - kr) * cr
    blue = y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return _to_bytes(np.stack([red, green, blue], axis=-1))


def to_planes(rgb: np.ndarray, coding: Coding) -> list[np.ndarray]:
    """uint8 (H, W, 3), H and W even, as the planes Y, Cb and Cr of 4:2:0."""
    black, luma_span, chroma_span = coding.ranges
    kr, kb = KR_KB[coding.matrix]
    red, green, blue = np.moveaxis(rgb.astype(np.float32) / 255, -1, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))
    chroma = (np.rint(_reduced(c) * chroma_span + 128) for c in (cb, cr))
    planes = [np.rint(y * luma_span + black), *chroma]
    return [np.clip(plane, 0, 255).astype(np.uint8) for plane in planes]


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def _upsampled(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Chroma at every luma sample, linearly between its neighbours."""
    plane = plane.astype(np.float32)
    if plane.shape[1] < width:
        after = np.concatenate([plane[:, 1:], plane[:, -1:]], axis=1)
        plane = np.stack([plane, (plane + after) / 2], axis=2).reshape(len(plane), -1)[:, :width]
    if plane.shape[0] < height:
        above = np.concatenate([plane[:1], plane[:-1]])
        below = np.concatenate([plane[1:], plane[-1:]])
        pairs = np.stack([(3 * plane + above) / 4, (3 * plane + below) / 4], axis=1)
        plane = pairs.reshape(-1, plane.shape[1])[:height]
    return plane


def _reduced(plane: np.ndarray) -> np.ndarray:
    """Chroma of 4:2:0: columns weighted 1, 2, 1 around the left one of each pair, rows halved."""
    plane = (plane[0::2] + plane[1::2]) / 2
    left, middle, right = plane[:, 1::2], plane[:, 0::2], plane[:, 1::2]
    left = np.concatenate([middle[:, :1], left[:, :-1]], axis=1)
    return (left + 2 * middle + right) / 4
