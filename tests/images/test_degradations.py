"""Blur, noise and compression against NumPy and the statistics they promise."""

import math

import numpy as np
import pytest
import torch

from c2d_models.errors import ArgumentError
from c2d_models.images import degradations
from c2d_models.images.resize import KERNELS, resample, resize_taps
from tests.images.samples import noise


def grey(level, side=64):
    return torch.full((3, side, side), float(level))


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2])
def test_the_kernel_has_the_moments_asked_for(angle):
    sigmas = (2.0, 0.9)
    kernel = degradations.gaussian_kernel(sigmas, angle).double().numpy()
    radius = len(kernel) // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    wanted = turn @ np.diag(np.square(sigmas)) @ turn.T
    found = [[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)]
    assert np.allclose(found, wanted, atol=0.1)  # cut off at three standard deviations


def test_blur_keeps_flat_colours_and_spreads_a_point():
    assert torch.allclose(degradations.blur(grey(77), (1.0, 0.5), 0.3), grey(77), atol=1e-4)
    point = torch.zeros(3, 15, 15)
    point[:, 7, 7] = 1.0
    spread = degradations.blur(point, (1.2, 1.2))
    kernel = degradations.gaussian_kernel((1.2, 1.2), 0.0)
    reach = len(kernel) // 2
    assert torch.allclose(spread[0, 7 - reach : 8 + reach, 7 - reach : 8 + reach], kernel)


def test_gaussian_noise_has_its_standard_deviation():
    rng = np.random.default_rng(0)
    noisy = degradations.add_gaussian_noise(grey(100), 7.0, rng) - 100
    assert float(noisy.std()) == pytest.approx(7, rel=0.03)
    assert abs(float((noisy[0] * noisy[1]).mean())) < 0.05 * 49
    same = degradations.add_gaussian_noise(grey(100), 7.0, rng, grey=True)
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], grey(100)[0])


@pytest.mark.parametrize("level", [20, 180])
def test_shot_noise_grows_with_the_level(level):
    rng = np.random.default_rng(0)
    noisy = degradations.add_shot_noise(grey(level), 1.5, rng)
    assert float(noisy.mean()) == pytest.approx(level, rel=0.02)
    assert float(noisy.var()) == pytest.approx(1.5 * level, rel=0.05)


@pytest.mark.parametrize("codec", degradations.CODECS)
def test_compression_costs_more_at_low_quality(codec):
    rough = torch.from_numpy(noise(8, 8, 3, seed=2)).permute(2, 0, 1).repeat_interleave(8, 1)
    image = rough.repeat_interleave(8, 2)[:, :61, :50]  # sides that no block divides
    errors = []
    for quality in (30, 90):
        back = degradations.compress(image, codec, quality)
        assert back.dtype == torch.uint8 and back.shape == image.shape
        errors.append(float((back.float() - image.float()).pow(2).mean()))
    assert 0 < errors[1] < errors[0]


def test_subsampling_blurs_colours_alone():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0, :, 1::2] = 255  # red stripes of one pixel
    image[1:, :, ::2] = 130
    full, half = (degradations.compress(image, "jpg", 95, each) for each in (False, True))
    errors = [float((each.float() - image.float()).abs().mean()) for each in (full, half)]
    assert errors[0] < 10 < errors[1]


def test_other_codecs_are_refused():
    with pytest.raises(ArgumentError, match="codec is 'gif'; give 'jpg' or 'webp'"):
        degradations.compress(torch.zeros(3, 8, 8, dtype=torch.uint8), "gif", 50)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("scale", [1.0, 0.5, 1 / 3, 0.37, 1.6])
def test_every_kernel_keeps_flat_colours_and_positions(name, scale):
    """Their weights sum to 1, and but for the box's below whole factors their centre is right."""
    count = math.floor(60 * scale)
    indices, weights = resize_taps(count, scale, 60, kernel=KERNELS[name])
    assert np.allclose(weights.sum(axis=1), 1)
    inner = slice(count // 4, -count // 4)
    centre = (np.arange(count) + 0.5) / scale - 0.5
    mean = (indices * weights).sum(axis=1)
    assert np.abs(mean - centre)[inner].max() < (0.51 if name == "box" else 0.09)
    ramp = torch.arange(60.0, dtype=torch.float64)[None]
    moved = resample(ramp, -1, indices, weights)[0].numpy()
    assert np.allclose(moved[inner], mean[inner])
