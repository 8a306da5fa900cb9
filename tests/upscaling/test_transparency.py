"""Transparent pictures: what nobody sees must not show, and edges stay as sharp as their colour."""

import struct

import numpy as np
import pytest
import pyvips
from PIL import Image

from c2d_models import upscale
from c2d_models.upscaling.batch import upscale_file
from c2d_models.upscaling.jobs import Job
from c2d_models.upscaling.target import Target
from c2d_models.upscaling.transparency import spread_colours
from c2d_models.upscaling.upscaler import Upscaler
from tests.upscaling.local_network import local, photo


def disc(height=48, width=40, soft=True):
    """Alpha of a disc, uint8, antialiased or hard."""
    y, x = np.mgrid[:height, :width]
    inside = 14 - np.hypot(y - height / 2, x - width / 2)
    return (np.clip(inside if soft else np.sign(inside), 0, 1) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(48, 40), (1, 17), (33, 1), (64, 64)], ids=str)
def test_visible_colours_stay_and_hidden_ones_follow_them(shape, dtype):
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    alpha = (disc(*shape) > 0) * np.asarray(full, dtype)
    alpha[shape[0] // 2, shape[1] // 2] = full
    orange = (np.array([1, 0.5, 0]) * full).astype(dtype)
    pixels = np.where(alpha[..., None] > 0, orange, 0).astype(dtype)
    spread = spread_colours(pixels, alpha)
    assert spread.dtype == dtype
    assert np.abs(spread.astype(float) - orange).max() <= full * 1e-6 + (full > 1)
    assert np.array_equal(spread[alpha > 0], pixels[alpha > 0])


def test_each_hidden_pixel_takes_the_colours_near_it():
    pixels, alpha = np.zeros((16, 64, 3), np.uint8), np.zeros((16, 64), np.uint8)
    pixels[:, :8], alpha[:, :8] = (200, 0, 0), 255
    pixels[:, 56:], alpha[:, 56:] = (0, 0, 200), 255
    spread = spread_colours(pixels, alpha)
    assert (spread[:, 8:10] >= (190, 0, 0)).all() and (spread[:, 54:56] >= (0, 0, 190)).all()
    reds = spread[8, 8:56, 0].astype(int)
    assert (np.diff(reds) <= 0).all() and 60 < reds[24] < 140


def test_nothing_to_spread():
    pixels = photo(5, 6, dtype=np.uint8)
    assert spread_colours(pixels, np.full((5, 6), 3, np.uint8)) is pixels
    assert not spread_colours(pixels, np.zeros((5, 6), np.uint8)).any()


@pytest.mark.parametrize("scale", [2, None], ids=["discrete", "continuous"])
@pytest.mark.parametrize("soft", [True, False], ids=["soft edge", "hard edge"])
def test_hidden_colours_do_not_matter(scale, soft):
    alpha, net = disc(soft=soft), local(scale)
    visible = photo(*alpha.shape, dtype=np.uint8)
    results = []
    for hidden in (0, 255):
        colours = np.where(alpha[..., None] > 0, visible, np.uint8(hidden))
        rgba = np.concatenate([colours, alpha[..., None]], axis=2)
        results.append(upscale(rgba, 2, model=net))
        grey = upscale(rgba[..., [1, 3]], 2, model=net)
        assert grey.shape == (96, 80, 2)
    assert np.array_equal(*results)


@pytest.mark.parametrize("model", [None, "hiet_swinir_tiny_continuous"], ids=["x4", "continuous"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "array"])
def test_a_logo_on_white_has_no_fringe(mode, model):
    """An orange disc over hidden black: on white, no pixel may be darker than orange or white."""
    alpha = disc(soft=mode != "P")
    colour = np.array([240, 140, 20]) if mode not in ("LA", "P") else np.array([150, 150, 150])
    rgba = np.where(alpha[..., None] > 0, colour, 0).astype(np.uint8)
    rgba = np.concatenate([rgba, alpha[..., None]], axis=2)
    if mode == "array":
        large = upscale(rgba, 4, model=model)
    else:
        image = Image.fromarray(rgba)
        if mode == "P":
            image = Image.fromarray((alpha > 0).astype(np.uint8), "P")
            image.putpalette([0, 0, 0, 150, 150, 150])
            image.info["transparency"] = 0
        elif mode == "LA":
            image = image.convert("LA")
        large = np.asarray(upscale(image, 4, model=model).convert("RGBA"))
    colours, opacity = large[..., :3].astype(float), large[..., 3:] / 255
    on_white = colours * opacity + 255 * (1 - opacity)
    truth = np.asarray(Image.fromarray(alpha).resize((160, 192), Image.Resampling.BICUBIC)) / 255
    expected = colour * truth[..., None] + 255 * (1 - truth[..., None])
    assert (on_white >= colour - 6).all()
    assert np.abs(on_white - expected).mean() < 4


def test_alpha_is_enlarged_by_the_network_unless_it_is_flat():
    image, net = photo(20, 24, 4), local(2)
    alpha = upscale(image, 2, model=net)[..., 3]
    assert np.array_equal(alpha, upscale(image[..., 3], 2, model=net))
    image[..., 3] = 0.5
    net.seen.clear()
    assert (upscale(image, 2, model=net)[..., 3] == 0.5).all()
    assert len(net.seen) == 1


@pytest.mark.parametrize("target", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("source", ["png", "gif", "webp", "tif", "associated.tif"])
def test_files_have_no_fringe(tmp_path, source, target):
    """As above, through files of every kind that has alpha, into files with it and without."""
    alpha = disc(soft=source != "gif")
    rgba = np.dstack([np.where(alpha[..., None] > 0, [240, 140, 20], 0), alpha]).astype(np.uint8)
    place, result = tmp_path / f"logo.{source}", tmp_path / f"large.{target}"
    if source == "gif":
        palette = Image.fromarray((alpha > 0).astype(np.uint8), "P")
        palette.putpalette([0, 0, 0, 240, 140, 20])
        palette.save(place, transparency=0)
    elif source == "associated.tif":
        rgba[..., :3] = np.rint(rgba[..., :3] * (alpha[..., None] / 255))
        image = pyvips.Image.new_from_array(rgba).copy(interpretation="srgb")
        image.tiffsave(str(place), premultiply=False)
        data = bytearray(place.read_bytes())  # the tag's value from 2 to 1
        at = data.index(struct.pack("<HHIH", 338, 3, 1, 2))
        data[at + 8] = 1
        place.write_bytes(data)
    else:
        Image.fromarray(rgba).save(place, **({"lossless": True} if source == "webp" else {}))
    upscaler = Upscaler.load(Target(4), device="cpu")
    upscale_file(Job(place, result), upscaler)
    large = np.asarray(Image.open(result).convert("RGBA")).astype(float)
    on_white = large[..., :3] * large[..., 3:] / 255 + 255 - large[..., 3:]
    assert on_white.shape == (192, 160, 3)
    worst = {"png": 6, "tif": 6, "webp": 20, "jpg": 20}[target]  # two of them lose a little
    assert (on_white >= [240 - worst, 140 - worst, 20 - worst]).all()
    assert (large[..., 3].min() == 255) == (target == "jpg")
