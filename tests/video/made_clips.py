"""Small clips, written by PyAV."""

from fractions import Fraction

import av
import numpy as np

LOSSLESS = {"crf": "0"}


def planes_frame(planes, pts, pix_fmt="yuv420p", time_base=Fraction(1, 25)):
    """A frame of uint8 planes."""
    height, width = planes[0].shape
    packed = np.concatenate([plane.ravel() for plane in planes])
    shape = (height * 3 // 2, width) if pix_fmt == "yuv420p" else (3, height, width)
    frame = av.VideoFrame.from_ndarray(packed.reshape(shape), format=pix_fmt)
    frame.pts, frame.time_base = pts, time_base
    return frame


def moving_planes(number, height=32, width=48):
    """4:2:0 planes of a gradient that moves."""
    y, x = np.mgrid[:height, :width]
    luma = (40 + 2 * x + y + 3 * number).clip(16, 235).astype(np.uint8)
    blue = (100 + x[::2, ::2]).astype(np.uint8)
    red = (150 - y[::2, ::2]).astype(np.uint8)
    return [luma, blue, red]


def write_clip(
    path,
    frames,
    *,
    codec="libx264",
    rate=25,
    stamps=None,
    sound=None,
    pix_fmt="yuv420p",
    matrix=None,
    full=None,
    options=None,
    trc=None,
    rotation=0,
    metadata=None,
):
    """`frames` are lists of planes; `sound` the name of an audio codec."""
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate)
        height, width = frames[0][0].shape
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        context = stream.codec_context
        context.options = {**(LOSSLESS if codec == "libx264" else {}), **(options or {})}
        context.time_base = Fraction(1, rate) if stamps is None else Fraction(1, 1000)
        if matrix is not None:
            context.colorspace = matrix
        if full is not None:
            context.color_range = 2 if full else 1
        if trc is not None:
            context.color_trc = trc
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=48000) if sound else None
        if audio is not None:
            audio.layout = "stereo"
            write_sound(container, audio, len(frames) / rate)
        for number, planes in enumerate(frames):
            pts = number if stamps is None else stamps[number]
            frame = planes_frame(planes, pts, pix_fmt, context.time_base)
            if matrix is not None:
                frame.colorspace = matrix
            if full is not None:
                frame.color_range = 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(container, stream, seconds):
    """A tone."""
    total = int(48000 * seconds)
    time = np.arange(total) / 48000
    tone = np.stack([np.sin(2600 * time), np.sin(3100 * time)]).astype(np.float32) * 0.3
    for start in range(0, total, 960):
        piece = np.ascontiguousarray(tone[:, start : start + 960])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, start
        frame.time_base = Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def read_planes(path):
    """[(seconds, planes)] of a clip in 4:2:0."""
    with av.open(str(path)) as container:
        return [
            (
                frame.pts * frame.time_base,
                [
                    np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].copy()
                    for p in frame.planes
                ],
            )
            for frame in container.decode(video=0)
        ]


def packets(path, kind):
    """[(seconds, bytes)] of the first stream of a kind, "audio" or "subtitles"."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [
            (float(packet.pts * packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]
