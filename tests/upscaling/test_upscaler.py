"""Kinds of images, sizes, models and settings: what comes in and what comes out."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from c2d_models import upscale
from c2d_models.errors import DeviceError, UpscaleError
from c2d_models.images import image_file
from c2d_models.images.image_file import ImageData
from c2d_models.pretrained import loading
from c2d_models.pretrained.loading import PURPOSES, ModelInfo
from c2d_models.upscaling.models import Models, choose_model
from c2d_models.upscaling.target import Target
from c2d_models.upscaling.upscaler import Upscaler
from tests.upscaling.local_network import identity, local, photo


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (4,)], ids=str)
def test_arrays_come_back_as_they_were(shape, dtype):
    image = photo(9, 7, shape[0] if shape else 1, dtype)
    if shape in ((2,), (4,)):
        image[..., -1] = np.maximum(image[..., -1], image.max() / 50)  # alpha 0 hides colours
    image = image if shape else image[..., 0]
    same = upscale(image, 1, model=identity())
    assert same.dtype == image.dtype and same.shape == image.shape
    # Exact for integers: a photograph enlarged by 1 through bilinear interpolation is itself.
    assert np.abs(same.astype(np.float64) - image).max() <= (1e-6 if "float" in dtype else 0)
    assert upscale(image, 2.5, model=identity()).shape == (23, 18, *shape)


def test_grey_is_the_mean_of_the_channels():
    net, image = local(2), photo(12, 10, 1)
    colour = upscale(np.repeat(image, 3, axis=2), 2, model=net)
    unclipped = (colour > 0).all(axis=2) & (colour < 1).all(axis=2)
    assert unclipped.sum() > 40
    grey = upscale(image[..., 0], 2, model=net)
    assert np.abs(grey - colour.mean(axis=2))[unclipped].max() < 1e-6


class Place(os.PathLike):
    """A path that is neither str nor Path."""

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("kind", [str, Path, Place])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_paths_give_arrays(tmp_path, channels, kind):
    samples = photo(8, 6, channels, np.uint16)
    samples[..., -1] |= 1  # alpha 0 would hide a colour
    colours = 1 if channels < 3 else 3
    alpha = samples[..., colours] if channels > colours else None
    image_file.write(tmp_path / "a.png", ImageData(samples[..., :colours], alpha))
    result = upscale(kind(tmp_path / "a.png"), 1, model=identity())
    assert result.dtype == np.uint16
    assert np.array_equal(result, samples if channels > 1 else samples[..., 0])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.004)], ids=["bfloat16", "float16"]
)
def test_half_precision_is_autocast(dtype, tolerance):
    net, image = local(None), photo(20, 20)
    full = upscale(image, 2, model=net)
    half = upscale(image, 2, model=net, dtype=dtype)
    assert 0 < np.abs(half - full).max() < tolerance
    # The bilinear part stays in float32: half precision would round the image itself.
    assert np.abs(upscale(image, 1, model=identity(), dtype=dtype) - image).max() < 1e-6


def test_overflow_is_said():
    net = local(2)
    nn.init.constant_(net.upsample[0].bias, float("inf"))
    with pytest.raises(UpscaleError, match="overflows in float16"):
        upscale(photo(8, 8), 2, model=net, dtype="float16")


@pytest.mark.parametrize(
    ("scale", "size", "expected"),
    [
        pytest.param(2.7, None, (14, 19), id="scale rounds each axis"),
        pytest.param(1, None, (5, 7), id="1"),
        pytest.param(4, None, (20, 28), id="4"),
        pytest.param(None, (20, 7), (20, 7), id="size may stretch"),
        pytest.param(None, None, (20, 28), id="default 4"),
    ],
)
def test_output_size(scale, size, expected):
    assert upscale(photo(5, 7), scale, size=size, model=identity()).shape[:2] == expected


def test_overshoot_of_floats_is_clipped():
    image = photo(6, 7) * 1.4 - 0.2
    assert np.array_equal(
        upscale(image, 2, model=local(2)), upscale(image.clip(0, 1), 2, model=local(2))
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("model_scale", "scale", "between"),
    [(2, 4, [2]), (2, 8, [2, 2]), (4, 16, [4]), (None, 6, [4]), (None, 16, [4])],
)
def test_large_factors_take_passes(model_scale, scale, between, channels, dtype):
    net, image = local(model_scale), photo(5, 6, channels, dtype)
    step = image if dtype == np.float32 else image.astype(np.float32) / 255
    for factor in between:
        step = upscale(step, factor, model=net)
    expected = upscale(step, scale / np.prod(between), model=net)
    fractions = []
    result = upscale(image, scale, model=net, progress=fractions.append)
    assert result.shape == (5 * scale, 6 * scale, channels)
    if dtype == np.uint8:  # 16 bits are kept in between
        visible = expected[..., -1:] > 0.1 if channels == 4 else True
        assert np.abs(visible * (result - expected * 255)).max() <= 1
    else:
        assert np.abs(result - expected).max() < 1e-5
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)


@pytest.mark.parametrize("model", list(PURPOSES))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flat_pages_stay_flat_up_to_their_border(model, channels):
    for level in (0, 60, 128, 255):
        large = upscale(np.full((40, 52, channels), level, np.uint8), 4, model=model).astype(int)
        assert np.abs(large - level).max() <= 1


@pytest.mark.parametrize("scale", [4, 2.5])
def test_grey_stored_as_rgb_stays_grey(scale):
    grey = np.repeat(photo(40, 52, 1, np.uint8), 3, axis=2)
    large = upscale(grey, scale)
    assert (large == large[..., :1]).all()
    assert np.array_equal(large[..., 0], upscale(grey[..., 0], scale))


def test_size_that_is_the_models_own_serves_a_discrete_one():
    assert upscale(photo(5, 7), size=(15, 21), model=local(3)).shape == (15, 21, 3)
    assert upscale(photo(5, 7), model=local(3)).shape == (15, 21, 3)


@pytest.mark.parametrize(
    ("image", "options", "sentence"),
    [
        pytest.param(photo(4, 4), {"scale": 0.5}, "scale is 0.5", id="small scale"),
        pytest.param(photo(4, 4), {"scale": 16.01}, "scale is 16.01", id="large scale"),
        pytest.param(photo(4, 4), {"scale": "2"}, "scale is '2'", id="scale of text"),
        pytest.param(photo(4, 4), {"size": 48}, "size is 48", id="one number for a size"),
        pytest.param(photo(4, 4), {"size": (8, 65)}, "width 65 from 4", id="large size"),
        pytest.param(photo(4, 4), {"size": (3, 8)}, "height 3 from 4", id="small size"),
        pytest.param(photo(4, 4), {"dtype": "int8"}, "dtype is int8", id="dtype"),
        pytest.param(photo(4, 4), {"tile": "big"}, "tile is big", id="tile"),
        pytest.param(photo(4, 4), {"tile": -8}, "tile is -8", id="negative tile"),
        pytest.param(photo(4, 4), {"tile": 16}, "at least 32", id="small tile"),
        pytest.param(photo(4, 4).astype(int), {}, "holds int64", id="int array"),
        pytest.param(photo(4, 4) > 0.5, {}, "holds bool", id="bool array"),
        pytest.param(photo(4, 4) * 255, {}, "floats from .* scale them to 0 to 1", id="0 to 255"),
        pytest.param(photo(4, 4) - 1, {}, "floats from -", id="-1 to 1"),
        pytest.param(photo(4, 4) * np.float32("nan"), {}, "holds NaN or infinity", id="NaN"),
        pytest.param(photo(4, 4) * np.float32("inf"), {}, "holds NaN or infinity", id="infinity"),
        pytest.param(photo(4, 4, 5), {}, "shape", id="five channels"),
        pytest.param(photo(0, 4), {}, "without a pixel", id="no pixel"),
        pytest.param([[1]], {}, "is a list", id="list"),
    ],
)
def test_refusals(image, options, sentence):
    with pytest.raises(UpscaleError, match=sentence):
        upscale(image, model=identity(), **options)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(DeviceError, match=f"device is {device}"):
        upscale(photo(4, 4), model=identity(), device=device)


def test_a_discrete_model_refuses_other_factors():
    with pytest.raises(UpscaleError, match=r"enlarges by 2 only \(in passes by 4 and 8 and 16\)"):
        upscale(photo(4, 4), 3, model=local(2))
    with pytest.raises(UpscaleError, match="makes 8x8 of this image"):
        upscale(photo(4, 4), size=(8, 9), model=local(2))


def shipped(*models):
    return [ModelInfo(name, Path(name), scale, params, 1) for name, scale, params in models]


TINY = ("hiet_swinir_tiny_x4", 4, 10), ("hiet_swinir_tiny_continuous", None, 10)
FULL = ("hiet_swinir_x4", 4, 99), ("hiet_swinir_continuous", None, 99), ("swinir_l_x4", 4, 999)


@pytest.mark.parametrize(
    ("models", "scale", "expected"),
    [
        pytest.param(TINY, 4, "hiet_swinir_tiny_x4", id="discrete for 4"),
        pytest.param(TINY, None, "hiet_swinir_tiny_continuous", id="no common factor"),
        pytest.param(TINY, 2.7, "hiet_swinir_tiny_continuous", id="continuous else"),
        pytest.param(TINY[1:], 4, "hiet_swinir_tiny_continuous", id="continuous can do 4"),
        pytest.param(TINY + FULL, 4, "hiet_swinir_x4", id="full before tiny and others"),
        pytest.param(TINY + FULL, 2, "hiet_swinir_continuous", id="full continuous"),
        pytest.param(TINY + FULL[1:2], 4, "hiet_swinir_continuous", id="full, though continuous"),
    ],
)
def test_the_shipped_model_for_a_scale(monkeypatch, models, scale, expected):
    monkeypatch.setattr(loading, "list_models", lambda: shipped(*models))
    assert choose_model(scale) == expected


def test_tiny_is_the_small_model_that_suits(monkeypatch):
    monkeypatch.setattr(loading, "list_models", lambda: shipped(*TINY, *FULL))
    assert choose_model(4, tiny=True) == "hiet_swinir_tiny_x4"
    assert choose_model(2.5, tiny=True) == "hiet_swinir_tiny_continuous"
    monkeypatch.undo()
    for factor in (4.0, 2.5):
        models = Upscaler.load(Target(factor), "tiny", "cpu").models
        assert models.network(factor).name == "hiet_swinir_tiny"
        assert models.network(factor).scale == (4 if factor == 4 else None)


PHOTO = ("hiet_swinir_photo", None, 99)


@pytest.mark.parametrize(
    ("models", "options", "expected"),
    [
        pytest.param((*FULL, PHOTO), {"lossy": True}, "hiet_swinir_photo", id="lossy"),
        pytest.param((*FULL[1:], PHOTO), {}, "hiet_swinir_continuous", id="lossless"),
        pytest.param(FULL, {"lossy": True}, "hiet_swinir_x4", id="none for lossy files"),
        pytest.param(
            (*TINY, *FULL, PHOTO),
            {"lossy": True, "tiny": True},
            "hiet_swinir_tiny_x4",
            id="no small one for lossy files",
        ),
    ],
)
def test_lossy_files_have_a_model_of_their_own(monkeypatch, models, options, expected):
    monkeypatch.setattr(loading, "list_models", lambda: shipped(*models))
    assert choose_model(4, **options) == expected


def test_only_the_first_pass_sees_what_compression_has_left(monkeypatch):
    monkeypatch.setattr(loading, "list_models", lambda: shipped(*FULL[1:], PHOTO))
    upscaler = Upscaler(Target(8.0), Models(None, torch.device("cpu")), torch.device("cpu"))
    both = ["hiet_swinir_photo", "hiet_swinir_continuous"]
    assert upscaler.chosen(10, 12, lossy=True) == both
    assert upscaler.chosen(10, 12, lossy=False) == both[1:]
    asked = Upscaler.load(Target(8.0), identity(), "cpu")
    assert asked.chosen(10, 12, lossy=True) == []


def test_no_shipped_model_is_said(monkeypatch):
    monkeypatch.setattr(loading, "list_models", lambda: shipped(TINY[0]))
    with pytest.raises(UpscaleError, match=r"no shipped model supports scale 2\.7"):
        choose_model(2.7)
