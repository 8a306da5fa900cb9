"""A clip enlarged into another: frames are decoded and encoded beside the network.

Three threads: one decodes, this one enlarges, one encodes and copies the sound. Queues between them
hold a few frames, so memory does not grow with the clip.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import VideoError
from ..files import temporary
from ..video.clip import Clip, Frame
from ..video.writer import ClipWriter
from .jobs import Written
from .pipeline import WorkerThreads
from .upscaler import Progress, Upscaler


def upscale_clip(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    quality: int = 95,
    metadata: str = "keep",
    max_pixels: int | None = None,
    progress: Progress = lambda fraction: None,
) -> Written:
    """Enlarge a clip into another, whose sides are even.

    Rate, time stamps, rotation, colour coding and metadata stay; sound and subtitles are copied as
    they are. A frame equal to the one before is enlarged once. The file appears whole or not at
    all.

    Args:
        source, target: files with endings of `writer.CODECS`; H.264, or VP9 for .webm, is written.
        quality: 1 to 100, as constant rate factors from 51 to 0; 100 is without loss.
        metadata: "keep", or "strip" for none (title, date, place).
        max_pixels: of a frame; a clip of more is refused.

    Raises:
        VideoError: see `Clip`; or the target's container does not hold the sound.
        UpscaleError: the target size is out of reach.
    """
    with Clip(source) as clip:
        if max_pixels is not None and clip.size[0] * clip.size[1] > max_pixels:
            raise VideoError(
                f"{source} is too large: {clip.size[1]}x{clip.size[0]} is more than "
                f"{max_pixels / 1e6:.4g} megapixels (--max-pixels raises that)."
            )
        wanted = upscaler.output_size(*clip.size)
        size = _even(wanted)
        unfinished = temporary(target.parent)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with ClipWriter(unfinished, target, clip, size, quality, metadata) as output:
                _run(clip, output, upscaler, size, progress)
            os.replace(unfinished, target)
        except OSError as error:
            raise VideoError(f"cannot write {target}: {error.strerror or error}.") from None
        finally:
            unfinished.unlink(missing_ok=True)
    odd = [f"a clip's sides are even: {size[1]}x{size[0]} of {wanted[1]}x{wanted[0]}"]
    models = upscaler.chosen(*clip.size, clip.lossy)
    return Written(size, odd if size != wanted else [], clip.lossy, models)


def _run(
    clip: Clip, output: ClipWriter, upscaler: Upscaler, size: tuple[int, int], progress: Progress
) -> None:
    large: np.ndarray | None = None
    done = 0
    with WorkerThreads() as threads:
        encoder = threads.behind(output.take)
        for packet, frame in threads.ahead(clip.packets()):
            if frame is None:
                encoder.send(packet)
                continue
            if large is None or not frame.repeats:
                large = _enlarged(frame, upscaler, size, clip.lossy)
            encoder.send((large, frame.pts))
            done += 1
            progress(min(done / clip.count, 1.0))
        encoder.finish()
    output.finish()


def _enlarged(frame: Frame, upscaler: Upscaler, size: tuple[int, int], lossy: bool) -> np.ndarray:
    """A frame of the clip's new size; a row or a column is dropped where that would be odd."""
    height, width = upscaler.output_size(*frame.rgb.shape[:2])
    large = np.empty((height, width, 3), np.uint8)

    def put(top: int, rows: np.ndarray) -> None:
        large[top : top + len(rows)] = rows

    upscaler.run(frame.rgb, None, put, large.dtype, lossy=lossy)
    return large[: size[0], : size[1]]


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """The next smaller even size: 4:2:0 has one chroma sample per 2x2 pixels."""
    height, width = (side - side % 2 for side in size)
    if min(height, width) < 2:
        raise VideoError("a clip must be at least 2x2 pixels large.")
    return height, width
