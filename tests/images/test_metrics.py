"""PSNR-Y and SSIM-Y against scikit-image, and the rules around them."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from c2d_models.images.metrics import psnr_liif, psnr_y, ssim_y, to_y


def pair(height, width, difference, seed=0):
    """A smooth HR image with some noise and an SR image `difference` grey levels away, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        128 + 90 * np.sin(x / a + c) * np.cos(y / b)
        for a, b, c in ((3, 5, 0), (7, 4, 1), (5, 9, 2))
    ]
    hr = np.stack(waves) + rng.normal(0, 6, (3, height, width))
    sr = hr + rng.normal(0, difference, hr.shape)
    return tuple(torch.from_numpy(np.clip(np.round(i), 0, 255).astype(np.uint8)) for i in (sr, hr))


def luma(image, border):
    """BT.601 studio luma inside the border, from values in [0, 1]."""
    r, g, b = image.numpy().astype(np.float64) / 255.0
    y = 16.0 + 65.481 * r + 128.553 * g + 24.966 * b
    return y[border : y.shape[0] - border, border : y.shape[1] - border]


CASES = [
    # height, width, border, difference
    pytest.param(40, 56, 4, 8.0, id="x4"),
    pytest.param(37, 29, 3, 2.0, id="x3-odd"),
    pytest.param(30, 31, 2, 25.0, id="x2-poor"),
    pytest.param(24, 24, 0, 1.0, id="no-border"),
    pytest.param(19, 45, 4, 5.0, id="one-window-high"),
]


@pytest.mark.parametrize(("height", "width", "border", "difference"), CASES)
def test_psnr_is_scikit_images(height, width, border, difference):
    sr, hr = pair(height, width, difference)
    expected = peak_signal_noise_ratio(luma(hr, border), luma(sr, border), data_range=255)
    assert psnr_y(sr, hr, border) == pytest.approx(expected, abs=1e-10)
    assert psnr_y(sr.float() / 255, hr.double() / 255, border) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("height", "width", "border", "difference"), CASES)
def test_liifs_psnr_is_of_unrounded_luma_between_0_and_1(height, width, border, difference):
    sr, hr = pair(height, width, difference)
    exact = sr.double() / 255 + torch.linspace(-0.3, 0.3, width) / 255  # rounds to sr
    weights = np.array([65.738, 129.057, 25.064]) / 256

    def grey(image):
        image = np.moveaxis(image.double().clamp(0, 1).numpy(), 0, -1) @ weights
        return image[border : height - border, border : width - border]

    expected = peak_signal_noise_ratio(grey(hr / 255.0), grey(exact), data_range=1)
    assert psnr_liif(exact, hr, border) == pytest.approx(expected, abs=1e-5)
    assert psnr_y(exact, hr, border) == psnr_y(sr, hr, border)
    # Between 8-bit images the two rules differ by their weights alone.
    assert psnr_liif(sr, hr, border) == pytest.approx(psnr_y(sr, hr, border), abs=1e-4)
    assert psnr_liif(sr, hr, border) != psnr_liif(exact, hr, border)


@pytest.mark.parametrize(("height", "width", "border", "difference"), CASES)
def test_ssim_is_scikit_images(height, width, border, difference):
    sr, hr = pair(height, width, difference)
    _, field = structural_similarity(
        luma(hr, border),
        luma(sr, border),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    expected = field[5:-5, 5:-5].mean()
    assert ssim_y(sr, hr, border) == pytest.approx(expected, abs=1e-10)
    assert ssim_y(sr.float() / 255, hr / 255.0, border) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        pytest.param((0, 0, 0), 16.0, id="black"),
        pytest.param((255, 255, 255), 235.0, id="white"),
        pytest.param((255, 0, 0), 81.481, id="red"),
        pytest.param((0, 255, 0), 144.553, id="green"),
        pytest.param((0, 0, 255), 40.966, id="blue"),
        pytest.param((51, 102, 204), 100.4902, id="blend"),
    ],
)
def test_luma_of_colours(colour, expected):
    image = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    assert to_y(image).dtype == torch.float64
    assert to_y(image).item() == pytest.approx(expected, abs=1e-9)


def test_images_are_rounded_to_8_bit_and_clamped():
    hr = torch.full((3, 12, 12), 100 / 255)
    assert psnr_y(hr + 0.4 / 255, hr) == math.inf
    # One level of all three colours is 219/255 of a level of luma.
    expected = 20 * math.log10(255 / (219 / 255))
    assert psnr_y(hr + 0.6 / 255, hr) == pytest.approx(expected, abs=1e-9)
    assert psnr_y(torch.full_like(hr, 1.3), torch.ones_like(hr)) == math.inf


def test_equal_images_and_broken_ones():
    _, hr = pair(20, 20, 1.0)
    assert psnr_y(hr, hr) == math.inf
    assert ssim_y(hr, hr) == pytest.approx(1.0, abs=1e-12)
    assert math.isnan(psnr_y(torch.full((3, 20, 20), math.nan), hr))


def test_border_leaves_the_edge_out():
    _, hr = pair(24, 30, 1.0)
    sr = hr.clone()
    sr[:, :3] = sr[:, -3:] = 0
    sr[..., :3] = sr[..., -3:] = 255
    assert psnr_y(sr, hr, 2) < 20
    assert psnr_y(sr, hr, 3) == math.inf


def test_a_batch_is_scored_as_one():
    pairs = [pair(20, 26, difference, seed=seed) for seed, difference in enumerate((2.0, 9.0))]
    sr, hr = (torch.stack(images) for images in zip(*pairs, strict=True))
    errors = [10 ** (-psnr_y(*each) / 10) for each in pairs]
    assert psnr_y(sr, hr) == pytest.approx(-10 * math.log10(sum(errors) / 2), abs=1e-10)
    assert ssim_y(sr, hr) == pytest.approx(sum(ssim_y(*each) for each in pairs) / 2, abs=1e-12)


IMAGE = torch.zeros(3, 16, 16)
REFUSALS = [
    pytest.param(psnr_y, (IMAGE, IMAGE[:, 1:]), ValueError, "give images of one size", id="sizes"),
    pytest.param(psnr_y, (IMAGE, IMAGE, 8), ValueError, "border is 8 .* at least 1x1", id="border"),
    pytest.param(psnr_y, (IMAGE, IMAGE, -1), ValueError, "border is -1", id="negative"),
    pytest.param(ssim_y, (IMAGE, IMAGE, 3), ValueError, "at least 11x11", id="window"),
    pytest.param(to_y, (IMAGE[:1],), ValueError, r"shape \(1, 16, 16\); give", id="grey"),
    pytest.param(to_y, (IMAGE.int(),), TypeError, "image is torch.int32; give uint8", id="int"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "sentence"), REFUSALS)
def test_refusals(function, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        function(*arguments)
