"""Reading and writing: every kind of file in, every format out, and nothing half-written."""

import _thread
import io
import struct
import threading

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms, ImageOps

from c2d_models.errors import ImageError
from c2d_models.images import image_file
from c2d_models.images import writer as writing
from c2d_models.images.image_file import ImageData, Writer, read, write
from c2d_models.images.metadata import Metadata


def noise(height, width, channels, depth=8, seed=0):
    shape = (height, width, channels)
    values = np.random.default_rng(seed).integers(0, 2**depth, shape)
    return values.astype(np.uint8 if depth == 8 else np.uint16)


def smooth(height, width, channels):
    """A picture that lossy formats keep closely."""
    y, x = np.mgrid[:height, :width]
    planes = [60 + 120 * np.sin(x / 19 + c) ** 2 + 60 * y / height for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def grey_profile():
    """The smallest ICC profile of a grey device: gamma 2.2 and D50 white."""
    xyz = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 563, 0)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(79)
    tags, body = b"", b""
    for name, value in ((b"wtpt", xyz), (b"kTRC", curve), (b"desc", text), (b"cprt", text)):
        value += bytes(-len(value) % 4)
        tags += name + struct.pack(">II", 128 + 4 + 4 * 12 + len(body), len(value))
        body += value
    head = struct.pack(
        ">I4s4s4s4s4s12s4s",
        0,
        b"\0" * 4,
        b"\2\x10\0\0",
        b"mntr",
        b"GRAY",
        b"XYZ ",
        struct.pack(">6H", 2026, 1, 1, 0, 0, 0),
        b"acsp",
    )
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    profile = head.ljust(128, b"\0") + struct.pack(">I", 4) + tags + body
    return struct.pack(">I", len(profile)) + profile[4:]


RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey+alpha", "rgb", "rgb+alpha"])
def test_lossless_formats_keep_every_sample(tmp_path, channels, depth, suffix):
    samples = noise(11, 7, channels, depth)
    colours = 1 if channels < 3 else 3
    alpha = samples[..., colours] if channels > colours else None
    write(tmp_path / f"a{suffix}", ImageData(samples[..., :colours], alpha))
    back = read(tmp_path / f"a{suffix}")
    assert back.bit_depth == depth and back.format == suffix[1:]
    assert np.array_equal(back.pixels, samples[..., :colours])
    assert (back.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(back.alpha, alpha)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
def test_lossy_formats_stay_close_and_hold_8_bits(tmp_path, channels, suffix):
    deep = smooth(48, 64, channels).astype(np.uint16) * 257
    write(tmp_path / f"a{suffix}", ImageData(deep), quality=95)
    back = read(tmp_path / f"a{suffix}").pixels
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - smooth(48, 64, channels)).mean() < 2


def test_quality_changes_the_size(tmp_path):
    for quality in (30, 95):
        write(tmp_path / f"{quality}.jpg", ImageData(noise(64, 64, 3)), quality=quality)
    assert (tmp_path / "30.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size / 2


def test_jpeg_lays_transparency_over_white(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    alpha = np.zeros((16, 32), np.uint8)
    alpha[:, 16:] = 255
    write(tmp_path / "a.jpg", ImageData(pixels, alpha))
    back = read(tmp_path / "a.jpg")
    assert back.alpha is None
    assert back.pixels[:, :8].min() > 250 and back.pixels[:, 24:].max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation):
    picture = Image.fromarray(noise(4, 6, 3))
    exif = picture.getexif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    picture.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    image = read(tmp_path / "a.png")
    assert np.array_equal(image.pixels, upright)
    write(tmp_path / "b.png", image)
    assert np.array_equal(read(tmp_path / "b.png").pixels, upright)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_exif_is_kept_with_orientation_1(tmp_path, suffix):
    picture = Image.fromarray(smooth(8, 12, 3))
    exif = picture.getexif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    picture.save(tmp_path / "a.jpg", exif=exif)
    write(tmp_path / f"b{suffix}", read(tmp_path / "a.jpg"))
    kept = Image.open(tmp_path / f"b{suffix}")
    assert kept.size == (8, 12)
    assert kept.getexif()[0x010F] == "Maker" and kept.getexif().get(0x0112, 1) == 1
    assert kept.getexif().get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"


def test_no_exif_is_invented(tmp_path):
    for suffix in (".png", ".jpg"):
        write(tmp_path / f"a{suffix}", ImageData(noise(4, 4, 3)))
        assert read(tmp_path / f"a{suffix}").metadata == Metadata()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_rgb_profile_is_kept(tmp_path, suffix):
    Image.fromarray(smooth(8, 8, 3)).save(tmp_path / "a.jpg", icc_profile=RGB_PROFILE)
    image = read(tmp_path / "a.jpg")
    write(tmp_path / f"b{suffix}", image)
    assert image.icc == RGB_PROFILE == read(tmp_path / f"b{suffix}").icc


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
def test_grey_stays_grey_with_its_profile(tmp_path, suffix):
    profile = grey_profile()
    Image.fromarray(smooth(8, 8, 1)[..., 0]).save(tmp_path / "a.jpg", icc_profile=profile)
    image = read(tmp_path / "a.jpg")
    write(tmp_path / f"b{suffix}", image)
    back = read(tmp_path / f"b{suffix}")
    assert image.pixels.shape == back.pixels.shape == (8, 8, 1)
    assert image.icc == back.icc == profile


def as_cmyk(path):
    Image.new("RGB", (8, 8), (200, 60, 30)).convert("CMYK").save(path, quality=95)


def as_palette(path, **options):
    Image.fromarray(smooth(8, 8, 3)).quantize(16).save(path, **options)


@pytest.mark.parametrize(
    ("name", "make", "channels", "alpha"),
    [
        pytest.param("a.png", as_palette, 3, False, id="palette"),
        pytest.param("a.png", lambda p: as_palette(p, transparency=3), 3, True, id="palette+alpha"),
        pytest.param("a.gif", as_palette, 3, False, id="gif"),
        pytest.param("a.png", lambda p: Image.new("1", (8, 8), 1).save(p), 1, False, id="one bit"),
        pytest.param("a.jpg", as_cmyk, 3, False, id="cmyk jpeg"),
        pytest.param("a.tif", as_cmyk, 3, False, id="cmyk tiff"),
        pytest.param("a.jpg", lambda p: as_palette(p, format="PNG"), 3, False, id="wrong ending"),
        pytest.param("[1].png", as_palette, 3, False, id="brackets in the name"),
    ],
)
def test_other_kinds_become_grey_or_rgb(tmp_path, name, make, channels, alpha):
    make(tmp_path / name)
    image = read(tmp_path / name)
    assert image.pixels.shape == (8, 8, channels) and image.pixels.dtype == np.uint8
    assert (image.alpha is not None) == alpha


def test_palette_and_cmyk_have_the_right_colours(tmp_path):
    as_palette(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(read(tmp_path / "a.png").pixels, expected)
    as_cmyk(tmp_path / "a.tif")
    red, green, blue = read(tmp_path / "a.tif").pixels[4, 4].astype(int)
    assert red > 150 and green < 120 and blue < 100


def animated(path, format):
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)) for seed in range(2)]
    frames[0].save(path, format, save_all=True, append_images=frames[1:])


def truncated(path, format):
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, format)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])


def samples(path, array):
    pyvips.Image.new_from_array(array).tiffsave(str(path))


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        pytest.param("a.png", lambda p: None, "does not exist", id="missing"),
        pytest.param("a.png", lambda p: p.touch(), "is empty", id="empty"),
        pytest.param("a.png", lambda p: p.mkdir(), "is a folder", id="folder"),
        pytest.param("a.png", lambda p: p.write_text("hello"), "is not a PNG, JPEG", id="text"),
        pytest.param("a.svg", lambda p: p.write_text("<svg/>"), "is an SVG drawing", id="svg"),
        pytest.param("a.png", lambda p: truncated(p, "PNG"), "truncated or damaged", id="cut png"),
        pytest.param("a.jpg", lambda p: truncated(p, "JPEG"), "truncated or damaged", id="cut jpg"),
        pytest.param(
            "a.webp", lambda p: truncated(p, "WEBP"), "truncated or damaged", id="cut webp"
        ),
        pytest.param(
            "a.tif", lambda p: truncated(p, "TIFF"), "truncated or damaged", id="cut tiff"
        ),
        pytest.param("a.gif", lambda p: truncated(p, "GIF"), "truncated or damaged", id="cut gif"),
        pytest.param(
            "a.tif",
            lambda p: samples(p, np.full((4, 4, 3), 200, np.float32)),
            "floats from 200 to 200",
            id="floats",
        ),
        pytest.param(
            "a.tif", lambda p: samples(p, np.ones((4, 4), np.int32)), "int32 samples", id="int32"
        ),
    ],
)
def test_unreadable_files_get_one_sentence(tmp_path, name, make, sentence):
    make(tmp_path / name)
    with pytest.raises(ImageError, match=sentence) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_too_large_is_refused_before_decoding(tmp_path, monkeypatch):
    write(tmp_path / "a.png", ImageData(noise(10, 10, 3)))
    monkeypatch.setattr(image_file, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="too large: 10x10"):
        read(tmp_path / "a.png")
    assert read(tmp_path / "a.png", max_pixels=100).pixels.shape == (10, 10, 3)
    with pytest.raises(ImageError, match="too large: 10x10"):
        read(tmp_path / "a.png", max_pixels=99)


def test_strips_in_any_order(tmp_path):
    small = ImageData(noise(10, 8, 3), np.full((10, 8), 77, np.uint8))
    large = noise(30, 24, 4, seed=1)
    with Writer(tmp_path / "a.png", 30, 24, like=small) as writer:
        for top in (20, 0, 10, 0):
            writer.write(top, large[top : top + 10])
        writer.finish()
    back = read(tmp_path / "a.png")
    assert np.array_equal(np.dstack([back.pixels, back.alpha]), large)


@pytest.mark.parametrize("value", range(0, 65536, 4099))
def test_reduction_to_8_bit_rounds(value):
    reduced = image_file.reduce_to_8_bit(np.array([value], np.uint16))[0]
    assert reduced == round(value / 257)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        pytest.param("a.bmp", (4, 4), "ends in .bmp", id="format"),
        pytest.param("none/a.png", (4, 4), "No such file or directory", id="no folder"),
        pytest.param("file/a.png", (4, 4), "cannot write", id="file as folder"),
        pytest.param("a.webp", (4, 16384), "at most 16383", id="too wide for webp"),
        pytest.param("a.jpg", (65501, 4), "at most 65500", id="too high for jpeg"),
        pytest.param("a.png", (2**31 - 1, 2**31 - 1), "MiB free", id="disk full"),
    ],
)
def test_unwritable_outputs_get_one_sentence(tmp_path, name, size, sentence):
    (tmp_path / "file").write_text("x")
    like = ImageData(noise(4, 4, 3))
    with pytest.raises(ImageError, match=sentence), Writer(tmp_path / name, *size, like=like):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unfinished_output_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "a.png"
    write(target, ImageData(noise(4, 4, 3)))
    before = target.read_bytes()

    def write_and_fail():
        with Writer(target, 8, 8, like=ImageData(noise(4, 4, 3))) as writer:
            writer.write(0, noise(8, 8, 3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_a_signal_while_the_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        open(*args, **kwargs).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "open", interrupted, raising=False)
    like = ImageData(noise(4, 4, 3))
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "a.png", 8, 8, like=like):
        pass
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_encoding_leaves_nothing(tmp_path):
    image = ImageData(noise(2500, 2500, 3))
    timer = threading.Timer(0.4, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.webp", image)  # several seconds, uninterrupted
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_wrong_shape_are_refused(tmp_path):
    with Writer(tmp_path / "a.png", 8, 8, like=ImageData(noise(4, 4, 3))) as writer:
        with pytest.raises(ValueError, match="rows are uint8"):
            writer.write(0, noise(2, 7, 3))
