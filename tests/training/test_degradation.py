"""Degradation of LR images: shares, positions, and that a step can be made again."""

import numpy as np
import pytest
import torch

from c2d_models.images.degradations import compress
from c2d_models.images.resize import imresize, lr_pair
from c2d_models.training.batches import ContinuousBatches, DiscreteBatches
from c2d_models.training.data import degraded_pair
from c2d_models.training.degradation import Degradation, Degradations, Span, _Codec
from tests.images.samples import noise, write

NOTHING = dict.fromkeys(("clean", "kernel", "again", "blur", "noise", "compress"), 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A smooth photograph, which reductions by all kernels show nearly alike."""
    path = tmp_path_factory.mktemp("photos")
    rough = torch.from_numpy(noise(12, 14, 3, seed=3)).permute(2, 0, 1)
    smooth = imresize(rough, size=(120, 140)).permute(1, 2, 0)
    write(path / "photo.png", smooth.numpy())
    return path


def batches(folder, scale=2, **shares):
    return DiscreteBatches(
        folder, scale=scale, patch=24, batch=48, seed=5, degradations=Degradations(**shares)
    )


def differences(batch):
    """Root mean square difference in levels from the bicubic reduction, inside each patch."""
    inner = (slice(None), slice(3, -3), slice(3, -3))
    found = []
    for hr, lr in zip(batch["hr"], batch["lr"], strict=True):
        size = tuple(lr.shape[-2:])
        reduced = imresize((hr * 255).round().to(torch.uint8), size=size)
        found.append(float(((lr * 255 - reduced)[inner] ** 2).mean().sqrt()))
    return found


def test_a_step_can_be_made_again(folder):
    first, second = (batches(folder).batch(7) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_levels_are_whole(folder):
    lr = batches(folder).batch(2)["lr"] * 255
    assert float((lr - lr.round()).abs().max()) < 1e-4
    assert lr.min() >= 0 and lr.max() <= 255


def test_clean_samples_are_the_bicubic_reduction(folder):
    plain = DiscreteBatches(folder, scale=2, patch=24, batch=48, seed=5)
    assert max(differences(plain.batch(0))) < 1
    assert max(differences(batches(folder, clean=1.0).batch(0))) < 1
    some = differences(batches(folder, **NOTHING | {"clean": 0.25, "noise": 1.0}).batch(0))
    clean = sum(difference < 0.01 for difference in some)
    assert 2 <= clean <= 24  # 48 draws at 0.25: three standard deviations, and rounding


def shift(lr, reduced, dim):
    """Pixels by which `lr` is shifted: the vertex of a parabola through three squared errors."""
    size = lr.shape[dim] - 2
    middle = lr.narrow(dim, 1, size)
    errors = [
        float((middle - reduced.narrow(dim, 1 + k, size)).square().mean()) for k in (-1, 0, 1)
    ]
    return (errors[0] - errors[2]) / (2 * (errors[0] + errors[2] - 2 * errors[1]))


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("share", ["kernel", "again", "blur", "compress"])
def test_the_patch_stays_where_it_is(folder, scale, share):
    batch = batches(folder, scale, **NOTHING | {share: 1.0}).batch(0)
    for dim in (-2, -1):
        shifts = []
        for hr, lr in zip(batch["hr"], batch["lr"], strict=True):
            reduced = imresize(hr, size=(24, 24))
            shifts.append(shift(lr, reduced, dim))
        assert abs(float(np.median(shifts))) < 0.05 and max(map(abs, shifts)) < 0.3


def test_half_a_pixel_would_be_seen(folder):
    image = batches(folder).batch(0)["hr"][0]
    moved = (image[..., 1:] + image[..., :-1]) / 2
    assert shift(moved, image[..., 1:], -1) == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize(("share", "least"), [("noise", 1.0), ("compress", 0.5)])
def test_strengths_differ(folder, share, least):
    found = differences(batches(folder, **NOTHING | {share: 1.0}).batch(0))
    assert max(found) > least + min(found)


def test_blocks_begin_anywhere(folder):
    """A JPEG's blocks of 8 would otherwise always begin at the patch's corner."""
    image = torch.from_numpy(noise(96, 96, 3, seed=1)).permute(2, 0, 1)
    degradation = Degradation("cubic", "cubic", None, 1.0, None, None, _Codec("jpg", 30, False))
    rng = np.random.default_rng(0)
    whole = degradation.reduce(image, (Span(48, 0.0, 2.0), Span(48, 0.0, 2.0)), rng)
    inner = degradation.reduce(image, (Span(40, 16.0, 2.0), Span(40, 16.0, 2.0)), rng)
    assert torch.equal(whole[:, 8:, 8:], inner)  # a block further on
    moved = degradation.reduce(image, (Span(40, 8.0, 2.0), Span(40, 8.0, 2.0)), rng)
    assert not torch.equal(whole[:, 4:44, 4:44], moved)
    expected = compress(imresize(image, size=(48, 48)), "jpg", 30, subsampled=False)
    # imresize rounds after each axis, this once; the codec then rounds to steps of 30 levels
    assert float((whole - expected).abs().mean()) < 2
    assert float((whole - expected.roll(1, -1)).abs().mean()) > 8


def test_continuous_batches_take_it_too(folder):
    shares = NOTHING | {"noise": 1.0}
    plain, noisy = (
        ContinuousBatches(folder, patch=24, queries=64, batch=8, seed=1, degradations=each).batch(0)
        for each in (None, Degradations(**shares))
    )
    assert plain["lr"].shape == noisy["lr"].shape
    assert not torch.equal(plain["lr"], noisy["lr"])


def test_held_out_pairs_keep_their_sizes():
    hr = torch.from_numpy(noise(60, 72, 3, seed=2)).permute(2, 0, 1)
    pair = lr_pair(hr, 3.0)
    lr, same = degraded_pair(pair, Degradations(clean=0.0), (0, 4))
    assert lr.dtype == torch.uint8 and lr.shape == pair[0].shape and torch.equal(same, pair[1])
    assert not torch.equal(lr, pair[0])
    again, _ = degraded_pair(pair, Degradations(clean=0.0), (0, 4))
    assert torch.equal(lr, again)
