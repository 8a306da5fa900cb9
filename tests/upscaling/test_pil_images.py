"""PIL images of every mode: what the samples mean, and what comes back."""

import numpy as np
import pytest
from PIL import Image

from c2d_models import upscale
from c2d_models.errors import UpscaleError
from tests.upscaling.local_network import identity, local, photo


def picture(mode, height=8, width=6):
    """A photograph in a mode."""
    if mode == "I;16":
        return Image.fromarray(photo(height, width, 1, np.uint16)[..., 0])
    if mode == "I":
        return Image.fromarray(photo(height, width, 1, np.uint16)[..., 0].astype(np.int32))
    image = Image.fromarray(photo(height, width, 3, np.uint8))
    return image.convert("RGBA").convert(mode) if mode in ("RGBa", "La") else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [
        *((mode, mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16", "I", "F")),
        *(("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB")),
        *(("RGBX", "RGB"), ("RGBa", "RGBA")),
    ],
)
def test_modes(mode, becomes):
    image = picture(mode)
    result = upscale(image, 2, model=local(2))
    assert isinstance(result, Image.Image)
    assert (result.mode, result.size) == (becomes, (12, 16))
    same = upscale(image, 1, model=identity())
    if mode != "CMYK":
        expected = np.asarray(image if mode == becomes else image.convert(becomes), np.float64)
        assert np.abs(np.asarray(same, np.float64) - expected).max() <= 1e-3


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_a_profile_goes_with_its_samples(mode):
    image = picture(mode)
    image.info["icc_profile"] = b"profile"
    assert upscale(image, 2, model=local(2)).info["icc_profile"] == b"profile"


def test_cmyk_loses_its_profile_with_its_channels():
    image = picture("CMYK")
    result = upscale(image, 1, model=identity())
    assert "icc_profile" not in result.info


@pytest.mark.parametrize(
    ("mode", "transparent", "becomes"),
    [
        ("L", 7, "LA"),
        ("RGB", (7, 7, 7), "RGBA"),
        ("P", 7, "RGBA"),
        ("1", 0, "LA"),
        ("I;16", 7, "LA"),
    ],
)
def test_a_transparent_colour_becomes_alpha(mode, transparent, becomes):
    if mode == "1":
        image = Image.fromarray(np.arange(48).reshape(6, 8) % 5 > 0)
        hidden = ~np.asarray(image)
    else:
        samples = np.full(
            (6, 8), 40000 if mode == "I;16" else 200, np.uint16 if "I" in mode else np.uint8
        )
        samples[2:4, 3:7] = 7
        hidden = samples == 7
        if mode == "RGB":
            samples = np.repeat(samples[..., None], 3, axis=2)
        image = Image.fromarray(samples, "P") if mode == "P" else Image.fromarray(samples)
        if mode == "P":
            image.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    image.info["transparency"] = transparent
    result = upscale(image, 1, model=identity())
    assert result.mode == becomes
    alpha = np.asarray(result)[..., -1]
    assert np.array_equal(alpha, np.where(hidden, 0, 255))
    colours = np.asarray(result)[..., :-1][~hidden]
    assert (colours == {"1": 255, "I;16": 156}.get(mode, 200)).all()


@pytest.mark.parametrize(
    ("mode", "white"), [("I", 255), ("I", 65535), ("F", 1.0), ("F", 255), ("F", 65535)]
)
def test_numbers_without_a_white(mode, white):
    values = photo(12, 10, 1)[..., 0]
    values = values / values.max() * white
    values = np.rint(values).astype(np.int32) if mode == "I" else values.astype(np.float32)
    net = local(2)
    result = upscale(Image.fromarray(values), 2, model=net)
    expected = upscale((values / white).astype(np.float32), 2, model=net) * white
    assert result.mode == mode
    assert np.abs(np.asarray(result) - expected).max() <= (0.6 if mode == "I" else 1e-5 * white)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.full((4, 4), -3, np.int32), "samples from -3 to 0"),
        (np.full((4, 4), 70000, np.int32), "samples from 0 to 70000"),
        (np.full((4, 4), np.nan, np.float32), "mode F and samples from nan"),
    ],
    ids=["negative", "too large", "NaN"],
)
def test_numbers_that_are_no_picture(values, sentence):
    with pytest.raises(UpscaleError, match=sentence):
        upscale(Image.fromarray(values), 2, model=local(2))


def test_a_mode_that_is_not_known():
    with pytest.raises(UpscaleError, match="mode LAB; convert it to RGB"):
        upscale(Image.new("LAB", (4, 4)), 2, model=local(2))


def test_orientation_is_applied():
    image = picture("RGB")
    image.getexif()[0x0112] = 6
    assert upscale(image, 1, model=identity()).size == (8, 6)
