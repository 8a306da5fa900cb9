"""A clip: what its file says, checked before a frame is enlarged, and its frames one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError
from .colours import Coding, to_rgb

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""File name endings (lower case) of clips."""
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics (ITU-T H.273)
_BT601, _BT709 = (5, 6), (1,)  # matrix coefficients
_UNSAID = 2
_PLANAR = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"}
_HIGH_DEFINITION = 720  # rows from which on a file that names no matrix means BT.709


def import_av() -> Any:
    """PyAV, or VideoError with the command that installs it."""
    try:
        import av
    except ImportError:
        raise VideoError(
            "videos need PyAV: pip install 'c2d-isr[video]', or pip install av."
        ) from None
    return av


@dataclass
class Frame:
    """One picture of a clip: uint8 (H, W, 3), its time stamp, and whether it repeats the last."""

    rgb: np.ndarray
    pts: int
    repeats: bool


class Clip:
    """A file opened for reading; a context manager.

    Attributes:
        rate: frames a second.
        count: of the frames.
        time_base: seconds that a time stamp counts.
        size: (H, W) as coded.
        rotation: degrees by which players turn the picture.
        coding: what its numbers mean.
        lossy: whether its codec loses detail, as all but those for masters do.

    Raises:
        VideoError: the file is not a clip, or has a variable rate, more than 8 bits, interlaced
            frames or HDR colours; one sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as probe:  # read through once: seeking back loses what is before 0 s
            if not probe.streams.video:
                raise VideoError(f"{path} holds no video.")
            self._check_format(probe.streams.video[0].codec_context)
            self._check_times(probe)
        with self._open() as probe:
            self.rotation = self._first_frame(probe).rotation
        self._container = self._open()
        self.stream = self._container.streams.video[0]

    def _open(self) -> Any:
        av = import_av()
        try:
            return av.open(str(self.path))
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{self.path} cannot be read as a clip: {reason}.") from None

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    @property
    def others(self) -> list[Any]:
        """The sound and the subtitles, to be copied."""
        return [*self._container.streams.audio, *self._container.streams.subtitles]

    @property
    def metadata(self) -> dict[str, str]:
        """Title, date and so on."""
        return dict(self._container.metadata)

    def packets(self) -> Iterator[tuple[Any, Frame | None]]:
        """The packets of `others`, and frames, in the order of the file; one of the two is None."""
        av = import_av()
        last: list[np.ndarray] = []
        rgb = np.empty((0, 0, 3), np.uint8)
        try:
            for packet in self._container.demux([self.stream, *self.others]):
                if packet.stream.index != self.stream.index:
                    if packet.dts is not None:
                        yield packet, None
                    continue
                for frame in packet.decode():
                    self._check_frame(frame)
                    planes = _planes(frame)
                    repeats = bool(last) and all(map(np.array_equal, planes, last))
                    if not repeats:
                        rgb, last = self._rgb(frame, planes), planes
                    yield None, Frame(rgb, frame.pts, repeats)
        except av.FFmpegError as error:
            raise VideoError(f"{self.path} is damaged: {error.strerror or error}.") from None

    def _check_format(self, context: Any) -> None:
        if context.format is None:
            raise VideoError(f"{self.path} holds a video that FFmpeg cannot decode.")
        name, self.lossy = context.format.name, context.codec.lossy
        bits = max(component.bits for component in context.format.components)
        if context.color_trc in _HDR:
            raise VideoError(
                f"{self.path} is HDR ({_HDR[context.color_trc]}), which is not enlarged: convert "
                "it to SDR of 8 bits first."
            )
        if bits > 8:
            raise VideoError(
                f"{self.path} has {bits} bits a sample, and 8 are read: convert it first."
            )
        matrix = context.colorspace
        if matrix not in (*_BT601, *_BT709, _UNSAID, 0):
            raise VideoError(
                f"{self.path} names the colour matrix {matrix}; BT.601 and BT.709 are read."
            )
        high = context.height >= _HIGH_DEFINITION
        modern = matrix in _BT709 or (matrix in (_UNSAID, 0) and high)
        full = context.color_range == 2 or name.startswith("yuvj")
        self.coding = Coding("bt709" if modern else "bt601", full)
        self.size = (context.height, context.width)

    def _check_times(self, container: Any) -> None:
        """Rate and count from the time stamps, which are read without decoding."""
        stream = container.streams.video[0]
        stamps = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        if not stamps:
            raise VideoError(f"{self.path} holds a video without time stamps.")
        self.count, self.time_base = len(stamps), Fraction(stream.time_base or 1)
        steps = np.diff(stamps)
        if len(steps) and steps.max() - steps.min() > max(2, 0.01 * float(np.median(steps))):
            fastest, slowest = (
                float(1 / (int(step) * self.time_base)) if step else 0.0
                for step in (steps.min(), steps.max())
            )
            raise VideoError(
                f"{self.path} has a variable rate ({slowest:.4g} to {fastest:.4g} frames a "
                "second): give it a constant one first, such as ffmpeg -i IN -vsync cfr OUT."
            )
        rate = stream.average_rate or stream.guessed_rate
        span = stamps[-1] - stamps[0]
        self.rate = Fraction(rate) if rate else Fraction(len(steps)) / (span * self.time_base)

    def _first_frame(self, container: Any) -> Any:
        """Decoded and checked."""
        av = import_av()
        try:
            frame = next(container.decode(video=0))
        except (av.FFmpegError, StopIteration) as error:
            reason = getattr(error, "strerror", None) or "it has no frame"
            raise VideoError(f"{self.path} cannot be decoded: {reason}.") from None
        self._check_frame(frame)
        return frame

    def _check_frame(self, frame: Any) -> None:
        if frame.interlaced_frame:
            raise VideoError(
                f"{self.path} is interlaced: deinterlace it first, such as by ffmpeg -i IN -vf "
                "bwdif OUT."
            )

    def _rgb(self, frame: Any, planes: list[np.ndarray]) -> np.ndarray:
        if frame.format.name in _PLANAR:
            return to_rgb(planes, self.coding)
        return planes[0]


def _planes(frame: Any) -> list[np.ndarray]:
    """Copies of the planes; of a format outside `_PLANAR`, RGB by libswscale."""
    if frame.format.name not in _PLANAR:
        return [frame.to_ndarray(format="rgb24")]
    return [
        np.frombuffer(plane, np.uint8)
        .reshape(plane.height, plane.line_size)[:, : plane.width]
        .copy()
        for plane in frame.planes
    ]
