"""Clips: colours to a level, times, sound, what is refused, and nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest

from c2d_models import cli, create
from c2d_models.errors import VideoError
from c2d_models.networks import checkpoint
from c2d_models.upscaling import clips
from c2d_models.upscaling.clips import upscale_clip
from c2d_models.upscaling.target import Target
from c2d_models.upscaling.upscaler import Upscaler
from c2d_models.video import clip as reading
from c2d_models.video.clip import Clip
from c2d_models.video.colours import Coding, to_planes, to_rgb
from tests.upscaling.local_network import identity, local
from tests.video.made_clips import moving_planes, packets, read_planes, write_clip

ROOT = Path(__file__).parents[2]
# BT.601 and BT.709, limited and full range: 75 % bars as tables of broadcast engineering have them.
BARS = {
    ("bt601", False): {
        "white": (180, 128, 128),
        "yellow": (162, 44, 142),
        "cyan": (131, 156, 44),
        "green": (112, 72, 58),
        "magenta": (84, 184, 198),
        "red": (65, 100, 212),
        "blue": (35, 212, 114),
        "black": (16, 128, 128),
    },
    ("bt709", False): {
        "white": (180, 128, 128),
        "yellow": (168, 44, 136),
        "cyan": (145, 147, 44),
        "green": (133, 63, 52),
        "magenta": (63, 193, 204),
        "red": (51, 109, 212),
        "blue": (28, 212, 120),
        "black": (16, 128, 128),
    },
}
RGB = {
    "white": (191, 191, 191),
    "yellow": (191, 191, 0),
    "cyan": (0, 191, 191),
    "green": (0, 191, 0),
    "magenta": (191, 0, 191),
    "red": (191, 0, 0),
    "blue": (0, 0, 191),
    "black": (0, 0, 0),
}


def upscaler(scale=2, net=None):
    return Upscaler.load(Target(scale), net or local(2), "cpu")


@pytest.mark.parametrize(("matrix", "full"), BARS)
def test_colour_bars(matrix, full):
    for name, (y, cb, cr) in BARS[matrix, full].items():
        planes = [np.full((4, 4), y, np.uint8), *(np.full((2, 2), c, np.uint8) for c in (cb, cr))]
        rgb = to_rgb(planes, Coding(matrix, full))
        assert np.abs(rgb.astype(int) - RGB[name]).max() <= 1, name
        back = to_planes(np.full((4, 4, 3), RGB[name], np.uint8), Coding(matrix, full))
        for plane, value in zip(back, (y, cb, cr), strict=True):
            assert np.abs(plane.astype(int) - value).max() <= 1, name


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_there_and_back(matrix, full):
    """Greys, and corners of RGB, each as a picture of one colour."""
    greys = [(level,) * 3 for level in range(256)]
    for colour in [*greys, *product((0, 85, 170, 255), repeat=3)]:
        rgb = np.full((4, 4, 3), colour, np.uint8)
        back = to_rgb(to_planes(rgb, Coding(matrix, full)), Coding(matrix, full))
        assert np.abs(back.astype(int) - rgb).max() <= 2, colour


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [6, 1], ids=["bt601", "bt709"])
def test_bars_through_files(tmp_path, matrix, full, ending):
    """Eight bars, enlarged twice and read again: the same numbers to a level, and tagged so."""
    kind = Coding("bt601" if matrix == 6 else "bt709", full)
    bars = np.array(list(RGB.values()), np.uint8).repeat(16, 0)[None].repeat(32, 0)
    planes = to_planes(bars, kind)
    source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    write_clip(source, [planes] * 2, matrix=matrix, full=full)
    upscale_clip(source, target, upscaler(net=identity()), quality=100)
    for _, back in read_planes(target):
        for plane, before in zip(back, planes, strict=True):
            inside = np.s_[:, 12::32] if plane.shape[1] == 256 else np.s_[:, 6::16]
            expected = before[:, 6::16] if plane.shape[1] == 256 else before[:, 3::8]
            assert np.abs(plane[inside][::2].astype(int) - expected[:1]).max() <= 2
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert context.colorspace == matrix
        assert (context.color_range == 2) == full


def test_a_matrix_that_is_not_named_goes_by_the_size(tmp_path):
    small = write_clip(tmp_path / "a.mkv", [moving_planes(0)])
    large = write_clip(tmp_path / "b.mkv", [moving_planes(0, 720, 64)])
    with Clip(small) as clip:
        assert clip.coding == Coding("bt601", False)
    with Clip(large) as clip:
        assert clip.coding == Coding("bt709", False)


@pytest.mark.parametrize(
    ("ending", "codec", "sound", "rate"),
    [
        (".mp4", "libx264", "aac", 25),
        (".mkv", "libx264", "flac", 30),
        (".webm", "libvpx-vp9", "libopus", 24),
    ],
)
def test_times_and_sound_stay(tmp_path, ending, codec, sound, rate):
    source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    frames = [moving_planes(number) for number in range(12)]
    write_clip(source, frames, codec=codec, sound=sound, rate=rate, metadata={"title": "A tree"})
    written = upscale_clip(source, target, upscaler())
    size, notes = written.size, written.notes
    assert (size, notes) == ((64, 96), [])
    before, after = read_planes(source), read_planes(target)
    assert [float(at) for at, _ in after] == pytest.approx(
        [float(at) for at, _ in before], abs=1e-3
    )
    assert packets(target, "audio")[1:] == [
        (pytest.approx(at, abs=1e-3), data) for at, data in packets(source, "audio")[1:]
    ]
    with av.open(str(target)) as container:
        assert container.streams.video[0].average_rate == rate
        assert container.metadata["title"] == "A tree"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_options_of_files_hold_for_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(create("swinir_l_tiny", 2), tmp_path / "x2.safetensors")
    write_clip(Path("a.mp4"), [moving_planes(0)], metadata={"title": "A tree"})
    command = "upscale a.mp4 -o b.mp4 --model x2.safetensors"
    assert cli.main(f"{command} --max-pixels 1000".split()) == 2
    assert "a.mp4 is too large: 48x32" in capsys.readouterr().err
    for metadata, kept in (("keep", True), ("strip", False)):
        arguments = f"{command} --overwrite --lossless --metadata {metadata}".split()
        assert cli.main(arguments) == 0
        with av.open("b.mp4") as container:
            assert ("title" in container.metadata) == kept


def test_frames_are_those_of_pictures(tmp_path):
    """Each is what the picture alone would become."""
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    frames = [moving_planes(number) for number in range(3)]
    write_clip(source, frames, matrix=6)
    doubled = upscaler()
    upscale_clip(source, target, doubled, quality=100)
    for planes, (_, after) in zip(frames, read_planes(target), strict=True):
        rgb = to_rgb(planes, Coding("bt601", False))
        expected = np.empty((64, 96, 3), np.uint8)

        def put(top, rows, into=expected):
            into[top : top + len(rows)] = rows

        doubled.run(rgb, None, put, expected.dtype)
        for plane, wanted in zip(after, to_planes(expected, Coding("bt601", False)), strict=True):
            assert np.array_equal(plane, wanted)


def test_a_repeated_frame_is_enlarged_once(tmp_path, monkeypatch):
    still, other = moving_planes(0), moving_planes(9)
    write_clip(tmp_path / "a.mkv", [still, still, still, other, other])
    enlarged, calls = clips._enlarged, []
    monkeypatch.setattr(clips, "_enlarged", lambda *args: calls.append(1) or enlarged(*args))
    upscale_clip(tmp_path / "a.mkv", tmp_path / "b.mkv", upscaler())
    assert len(calls) == 2 and len(read_planes(tmp_path / "b.mkv")) == 5


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_rotation_stays(tmp_path, degrees):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_clip(source, [moving_planes(n) for n in range(2)], rotation=degrees)
    upscale_clip(source, target, upscaler())
    with Clip(source) as before, Clip(target) as after:
        assert before.rotation == after.rotation != 0
        assert after.size == (64, 96)


def test_odd_sizes_are_made_even_with_a_note(tmp_path):
    write_clip(tmp_path / "a.mkv", [moving_planes(0, 30, 46)])
    net = identity()
    written = upscale_clip(
        tmp_path / "a.mkv", tmp_path / "b.mkv", Upscaler.load(Target(1.5), net, "cpu")
    )
    assert written.size == (44, 68)
    assert written.notes == ["a clip's sides are even: 68x44 of 69x45"]


def damaged(path):
    write_clip(path, [moving_planes(n) for n in range(4)])
    path.write_bytes(path.read_bytes()[:300])


def silent_of_pictures(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=48000)
        from tests.video.made_clips import write_sound

        write_sound(container, stream, 0.1)


REFUSED = [
    ("text.mkv", lambda path: path.write_text("no clip"), "cannot be read as a clip"),
    ("cut.mp4", damaged, "cannot be read as a clip"),
    ("sound.mkv", silent_of_pictures, "holds no video"),
    (
        "uneven.mkv",
        lambda path: write_clip(
            path, [moving_planes(n) for n in range(6)], stamps=[0, 40, 80, 200, 240, 280]
        ),
        "has a variable rate (8.333 to 25 frames a second)",
    ),
    (
        "hdr.mkv",
        lambda path: write_clip(path, [moving_planes(0)], trc=16),
        "is HDR (PQ)",
    ),
    (
        "interlaced.mkv",
        lambda path: write_clip(
            path, [moving_planes(n) for n in range(4)], options={"x264-params": "tff=1"}
        ),
        "is interlaced",
    ),
]


@pytest.mark.parametrize(("name", "make", "sentence"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(tmp_path, name, make, sentence):
    source, target = tmp_path / name, tmp_path / "out.mkv"
    make(source)
    with pytest.raises(VideoError) as caught:
        upscale_clip(source, target, upscaler())
    told = str(caught.value)
    assert sentence in told and str(source) in told and "\n" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_ten_bits_are_refused(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p10le"
        frame = av.VideoFrame(48, 32, "yuv420p10le")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="has 10 bits a sample, and 8 are read"):
        upscale_clip(tmp_path / "a.mkv", tmp_path / "b.mkv", upscaler())


def test_sound_that_the_container_does_not_hold(tmp_path):
    write_clip(tmp_path / "a.mp4", [moving_planes(0)], sound="aac")
    with pytest.raises(VideoError, match=r"b.webm cannot hold the sound .*: use .mkv"):
        upscale_clip(tmp_path / "a.mp4", tmp_path / "b.webm", upscaler())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


@pytest.mark.parametrize("where", ["decode", "enlarge", "encode"])
def test_a_fault_anywhere_ends_the_run_and_leaves_nothing(tmp_path, monkeypatch, where):
    def fail(*arguments, **options):
        raise RuntimeError("broken")

    write_clip(tmp_path / "a.mkv", [moving_planes(n) for n in range(30)], sound="flac")
    home, name = {
        "decode": (reading, "_planes"),
        "enlarge": (clips, "_enlarged"),
        "encode": (clips.ClipWriter, "take"),
    }[where]
    monkeypatch.setattr(home, name, fail)
    with pytest.raises(RuntimeError, match="broken"):
        upscale_clip(tmp_path / "a.mkv", tmp_path / "b.mkv", upscaler())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    write_clip(tmp_path / "a.mkv", [moving_planes(n, 240, 320) for n in range(200)])
    checkpoint.save(create("swinir_l_tiny", 2), tmp_path / "x2.safetensors")
    command = "upscale a.mkv -o out/b.mkv --model x2.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-m", "c2d_models.cli", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and complaint == "c2d: interrupted.\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_folders_and_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(create("swinir_l_tiny", 2), tmp_path / "x2.safetensors")
    os.mkdir("in")
    write_clip(Path("in/a.mp4"), [moving_planes(n) for n in range(3)], sound="aac")
    write_clip(Path("in/b.MOV").with_suffix(".mov"), [moving_planes(0)])
    assert cli.main(["upscale", "in", "-o", "out", "--model", "x2.safetensors"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("in/a.mp4 -> out/a.mp4  96x64")
    assert told[-1] == "2 written, 0 skipped, 0 failed"
    assert sorted(os.listdir("out")) == ["a.mp4", "b.mov"]
    assert cli.main(["upscale", "in/a.mp4", "-o", "a.png", "--model", "x2.safetensors"]) == 2
    assert "in/a.mp4 is a video, and a.png would not be" in capsys.readouterr().err


def test_without_pyav_the_command_that_helps_is_told(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mkv", [moving_planes(0)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"need PyAV: pip install 'c2d-isr\[video\]'"):
        upscale_clip(tmp_path / "a.mkv", tmp_path / "b.mkv", upscaler())
