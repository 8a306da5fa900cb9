"""A new clip: H.264 or VP9 beside sound and subtitles that are copied as they are."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError
from .clip import Clip, import_av
from .colours import Coding, to_planes

CODECS = {
    ".mp4": ("mp4", "libx264"),
    ".m4v": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
"""Container and codec by the file's ending."""
_MATRICES = {"bt601": (6, 6, 6), "bt709": (1, 1, 1)}  # primaries, transfer, matrix (H.273)


class ClipWriter:
    """The clip in the making; a context manager.

    Args:
        file: where it is written.
        target: the file's name to be, whose ending says the container and the codec.
        clip: whose rate, rotation, coding, metadata, sound and subtitles it takes.
        size: (H, W), even.
        quality: 1 to 100, as constant rate factors from 51 to 0; 100 is without loss.
        metadata: "keep" or "strip".

    Raises:
        VideoError: the container does not hold the sound or the subtitles.
    """

    def __init__(
        self,
        file: Path,
        target: Path,
        clip: Clip,
        size: tuple[int, int],
        quality: int,
        metadata: str,
    ) -> None:
        av = import_av()
        self._av, self._coding = av, clip.coding
        container, codec = CODECS[target.suffix.lower()]
        options = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
        self._container = av.open(str(file), "w", format=container, options=options)
        if metadata == "keep":
            self._container.metadata.update(clip.metadata)
        self._stream = self._container.add_stream(codec, rate=clip.rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._time_base = clip.time_base
        context = self._stream.codec_context
        context.time_base = clip.time_base
        context.options = _encoder(codec, quality)
        primaries, transfer, matrix = _MATRICES[clip.coding.matrix]
        context.color_primaries, context.color_trc = primaries, transfer
        context.colorspace, context.color_range = matrix, 2 if clip.coding.full else 1
        if clip.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = Fraction(clip.stream.sample_aspect_ratio)
        if clip.rotation:
            self._stream.set_display_rotation(clip.rotation)
        try:
            self._copied = {
                other.index: self._container.add_stream_from_template(other)
                for other in clip.others
            }
            self._container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            self._container.close()
            raise VideoError(
                f"{target} cannot hold the sound or the subtitles of {clip.path} "
                f"({getattr(error, 'strerror', None) or error}): use .mkv, which holds any."
            ) from None

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:  # a trailer of what is thrown away may fail
            with contextlib.suppress(self._av.FFmpegError):
                self._container.close()

    def take(self, item: Any) -> None:
        """Encode (rgb, time stamp), or copy a packet."""
        if isinstance(item, tuple):
            rgb, pts = item
            frame = _frame(self._av, rgb, self._coding)
            frame.pts, frame.time_base = pts, self._time_base
            self._container.mux(self._stream.encode(frame))
        else:
            item.stream = self._copied[item.stream.index]
            self._container.mux(item)

    def finish(self) -> None:
        """Encode what waits, and close the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _encoder(codec: str, quality: int) -> dict[str, str]:
    """Its options: 100 is factor 0, 95 is 17, which nobody tells from the original, 1 is 51."""
    factor = (100 - quality) * 3.4 if quality >= 95 else 17 + (95 - quality) * 34 / 94
    options = {"crf": str(round(factor))}
    if codec == "libx264":
        return options
    lossless = {"lossless": "1"} if quality == 100 else {}
    return {**options, "b": "0", "row-mt": "1", **lossless}


def _frame(av: Any, rgb: np.ndarray, coding: Coding) -> Any:
    """YCbCr 4:2:0 as PyAV takes it."""
    planes = to_planes(rgb, coding)
    height, width = planes[0].shape
    packed = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
    frame = av.VideoFrame.from_ndarray(packed, format="yuv420p")
    primaries, transfer, matrix = _MATRICES[coding.matrix]
    frame.color_primaries, frame.color_trc = primaries, transfer
    frame.colorspace, frame.color_range = matrix, 2 if coding.full else 1
    return frame
