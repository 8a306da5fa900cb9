"""Metadata arrives in every format, and stays true."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from c2d_models.images.image_data import ImageData
from c2d_models.images.image_file import Writer, read, write
from c2d_models.images.metadata import Metadata
from tests.images import document, fields
from tests.images.fields import FIELDS, KINDS

PICTURES = Path(__file__).parents[1] / "data" / "pictures"


def test_the_page_is_up_to_date():
    assert document.PAGE.read_text(encoding="utf-8") == document.page(), (
        "docs/formats.md is stale: python -m tests.images.document"
    )


HELD = {
    "Resolution": ("png", "jpg", "tiff"),  # WebP has no place for it
    "IPTC": ("png", "jpg", "tiff"),
}


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize(
    ("field", "source"),
    [pytest.param(f, kind, id=f"{f.name} from {kind}") for f in FIELDS for kind in f.kinds],
)
def test_a_field_is_kept_in_every_container_with_a_place_for_it(tmp_path, field, source, target):
    found = document.outcome(field, source, target, tmp_path)
    if target in HELD.get(field.name, KINDS):
        assert found in (
            "kept",
            "as an ICC profile",
            "as text Comment",
            "as EXIF's UserComment",
        )
    else:
        assert found is None


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_strip_leaves_the_colour_profile_alone(tmp_path, source, target):
    picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    options = {"exif": fields.exif(), "icc_profile": fields.PROFILE, "dpi": (300, 300)}
    before, after = tmp_path / f"a.{source}", tmp_path / f"b.{target}"
    before.write_bytes(fields.saved(source, picture, **options))
    write(after, read(before), metadata="strip")
    assert read(after).metadata == Metadata() and read(after).icc == fields.PROFILE
    assert b"Maker" not in after.read_bytes()


def enlarge(image, path, factor):
    """As `c2d upscale` writes, each pixel repeated."""
    height, width, _ = image.pixels.shape
    pixels = image.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    with Writer(path, factor * height, factor * width, like=image) as writer:
        writer.write(0, pixels)
        writer.finish()


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize(
    "source",
    [
        "300dpi.png",
        "jfif_300dpi.jpg",
        "without_resolution.webp",
        "orientation6_exif_xmp.jpg",
        "orientation6_tag_xmp.tif",
        "text_parameters.png",
        "text_keyword_latin1.png",
        "grey_dot_gain.jpg",
        "lossless.webp",
    ],
)
def test_the_cases(tmp_path, source, target):
    """Resolution as it was and none invented, orientation once, texts, lossless stays lossless."""
    image = read(PICTURES / source)
    path = tmp_path / f"a.{target}"
    enlarge(image, path, 2)
    back, opened = read(path), Image.open(path)
    assert opened.size == (2 * image.pixels.shape[1], 2 * image.pixels.shape[0])
    dpi = fields.stated_dpi(path)
    if "300dpi" in source and target != "webp":
        assert np.allclose(dpi, 300, atol=0.1)
    else:
        assert dpi is None
    if "orientation6" in source:
        assert image.pixels.shape[:2] == (80, 60)
        assert b'tiff:Orientation="1"' in back.metadata.xmp
        assert opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if source == "text_parameters.png" and target == "png":
        assert opened.text["parameters"].startswith("a tree with a bird")
        assert (opened.text["Author"], opened.text["Title"]) == ("Jane", "Gr\u00f6\u00dfe")
    if source == "text_keyword_latin1.png" and target == "png":
        assert opened.text == {"Gr\u00f6\u00dfe": "80x60"}
    if source == "grey_dot_gain.jpg":
        if target == "webp":  # RGB, so sRGB: a dot gain of 20 % is darker than sRGB's curve
            grey = back.pixels.astype(int)
            assert back.icc is None and np.ptp(grey, axis=2).max() <= 2
        else:
            assert back.icc == image.icc and back.pixels.shape[2] == 1
    if source == "lossless.webp" and target != "jpg":
        assert not back.lossy
        assert np.array_equal(back.pixels[::2, ::2], image.pixels)


def test_a_grey_profile_in_webp_is_converted(tmp_path):
    """As LittleCMS converts it."""
    from PIL import ImageCms

    image = read(PICTURES / "grey_dot_gain.jpg")
    image.lossy, image.format = False, "webp"
    write(tmp_path / "a.webp", image)
    expected = ImageCms.profileToProfile(
        Image.open(PICTURES / "grey_dot_gain.jpg"),
        io.BytesIO(image.icc),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
    )
    got = read(tmp_path / "a.webp").pixels.astype(int)
    assert np.abs(got - np.asarray(expected)).max() <= 4


@pytest.mark.parametrize("source", KINDS)
def test_width_height_and_thumbnail_are_true_after_enlarging(tmp_path, source):
    picture = Image.fromarray(np.full((30, 40, 3), 90, np.uint8))
    block = fields.exif(Orientation=1)
    inner = block.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight] = 40, 30
    before, after = tmp_path / f"a.{source}", tmp_path / "b.jpg"
    before.write_bytes(fields.with_exif(source, picture, block))
    enlarge(read(before), after, 3)
    inner = Image.open(after).getexif().get_ifd(ExifTags.IFD.Exif)
    assert (inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight]) == (120, 90)


def test_a_thumbnail_is_removed(tmp_path):
    """It would show the small picture, perhaps lying on its side."""
    small = fields.saved("jpg", Image.fromarray(np.full((8, 8, 3), 200, np.uint8)))
    main = struct.pack(">HHHIHH", 1, 274, 3, 1, 6, 0)
    second = struct.pack(">HHHIIHHII", 2, 513, 4, 1, 56, 514, 4, 1, len(small))
    block = b"MM\0*\0\0\0\x08" + main + struct.pack(">I", 26) + second + bytes(4)
    assert len(block) == 56
    plain = fields.saved("jpg", Image.fromarray(np.full((30, 40, 3), 90, np.uint8)))
    data = plain[:2] + fields.segment(0xE1, b"Exif\0\0" + block + small) + plain[2:]
    (tmp_path / "a.jpg").write_bytes(data)
    assert Image.open(tmp_path / "a.jpg").getexif().get_ifd(ExifTags.IFD.IFD1)
    image = read(tmp_path / "a.jpg")
    assert image.pixels.shape == (40, 30, 3)
    write(tmp_path / "b.jpg", image)
    after = (tmp_path / "b.jpg").read_bytes()
    assert after.count(b"\xff\xd8\xff") == 1 and small[20:] not in after
    assert not Image.open(tmp_path / "b.jpg").getexif().get_ifd(ExifTags.IFD.IFD1)


def test_broken_metadata_never_stops_a_picture(tmp_path):
    """EXIF of noise, texts that are not what they say: left out, or kept as far as they go."""
    rng = np.random.default_rng(0)
    plain = fields.saved("jpg", Image.fromarray(np.full((8, 8, 3), 90, np.uint8)))
    for seed in range(200):
        noise = rng.integers(0, 256, 64, np.uint8).tobytes()
        head = (b"MM\0*", b"II*\0", b"")[seed % 3]
        data = plain[:2] + fields.segment(0xE1, b"Exif\0\0" + head + noise) + plain[2:]
        (tmp_path / "a.jpg").write_bytes(data)
        image = read(tmp_path / "a.jpg")
        for kind in KINDS:
            write(tmp_path / f"b.{kind}", image)
            assert read(tmp_path / f"b.{kind}").pixels.shape == (8, 8, 3)


def test_a_thin_red_line_keeps_its_red(tmp_path):
    """One pixel wide, which colours of half the resolution would wash out."""
    image = read(PICTURES / "thin_red_line.png")
    for name, quality in (("a.webp", 100), ("a.jpg", 100), ("b.jpg", 95)):
        write(tmp_path / name, image, quality=quality)
        off = np.abs(read(tmp_path / name).pixels.astype(int) - image.pixels).max()
        assert off <= {"a.webp": 0, "a.jpg": 3, "b.jpg": 12}[name], (name, off)


def test_webp_is_lossless_on_request(tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    write(tmp_path / "a.webp", ImageData(samples), lossless=True)
    write(tmp_path / "b.webp", ImageData(samples))
    assert np.array_equal(read(tmp_path / "a.webp").pixels, samples)
    assert not np.array_equal(read(tmp_path / "b.webp").pixels, samples)


def test_a_profile_that_does_not_fit_is_left_out(tmp_path):
    """Broken, or of RGB in a grey picture: the pixels stay, and nothing fails later."""
    for name, mode, profile in (
        ("a.jpg", "RGB", fields.PROFILE[:60] + b"\xff" * 200 + fields.PROFILE[260:]),
        ("b.jpg", "L", fields.PROFILE),
    ):
        picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).convert(mode)
        (tmp_path / name).write_bytes(fields.saved("jpg", picture, icc_profile=profile))
        image = read(tmp_path / name)
        assert image.icc is None and "profile" in image.notes[0]
        for kind in KINDS:
            write(tmp_path / f"o.{kind}", image)
