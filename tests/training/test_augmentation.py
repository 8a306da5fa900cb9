"""Colour augmentation: its shares, what it leaves alone, and that LR and HR change alike."""

import numpy as np
import pytest
import torch

from c2d_models.errors import ConfigError
from c2d_models.images.resize import imresize
from c2d_models.training.augmentation import Augmentation, Change, drawing
from c2d_models.training.batches import ContinuousBatches, DiscreteBatches
from c2d_models.training.config import load_config
from tests.images.samples import noise, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    write(path / "photo.png", noise(100, 120, 3, seed=3))
    return path


def batches(folder, **shares):
    return DiscreteBatches(
        folder, scale=2, patch=16, batch=64, seed=5, augmentation=Augmentation(**shares)
    )


def is_grey(image):
    return bool((image == image[:1]).all())


def test_nothing_asked_for_draws_nothing(folder):
    plain = DiscreteBatches(folder, scale=2, patch=16, batch=8, seed=5).batch(3)
    same = DiscreteBatches(
        folder, scale=2, patch=16, batch=8, seed=5, augmentation=Augmentation()
    ).batch(3)
    assert all(torch.equal(plain[key], same[key]) for key in plain)


def test_a_step_can_be_made_again(folder):
    shares = {"permute": True, "grey": 0.3, "drawn": 0.3}
    first, second = (batches(folder, **shares).batch(7) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_shares_are_those_asked_for(folder):
    batch = batches(folder, grey=0.25).batch(0)
    grey = [is_grey(hr) for hr in batch["hr"]]
    assert 6 <= sum(grey) <= 27  # 64 draws at 0.25: five standard deviations
    for hr, lr in zip(batch["hr"], batch["lr"], strict=True):
        assert is_grey(hr) == is_grey(lr)


@pytest.mark.parametrize("change", [{"grey": 1.0}, {"drawn": 1.0}, {"permute": True}])
def test_lr_is_the_reduction_of_the_changed_patch(folder, change):
    """Away from the patch's edge, beyond which LR pixels see the photograph.

    imresize rounds between its two axes, and a patch may have been transposed since.
    """
    batch = batches(folder, **change).batch(1)
    inner = (slice(None), slice(3, -3), slice(3, -3))
    for hr, lr in zip(batch["hr"], batch["lr"], strict=True):
        hr = (hr * 255).round().to(torch.uint8)
        reduced = imresize(hr, 1 / 2), imresize(hr.mT.contiguous(), 1 / 2).mT
        differences = [(each[inner].float() - lr[inner] * 255).abs().max() for each in reduced]
        assert min(differences) <= 1  # level: a sum that falls on a half


def test_grey_is_the_photographs_luma():
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]).to(torch.uint8)
    image = colours.T[:, None]  # (3, 1, 4)
    grey = Change(drawn=False, grey=True, order=(0, 1, 2)).recolour(image)
    assert grey.shape == image.shape and is_grey(grey)
    assert grey[0, 0].tolist() == [76, 150, 29, 18]


def test_a_permutation_moves_channels_only():
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    changed = Change(drawn=False, grey=False, order=(2, 0, 1)).recolour(image)
    assert torch.equal(changed, image[[2, 0, 1]])


def test_every_order_of_channels_comes(folder):
    rng = np.random.default_rng(0)
    orders = {Augmentation(permute=True).draw(rng).order for _ in range(200)}
    assert len(orders) == 6


def test_drawings_are_grey_as_often_as_not_and_mostly_flat():
    pictures = [drawing(np.random.default_rng(seed), 64) for seed in range(60)]
    assert 15 <= sum(is_grey(picture) for picture in pictures) <= 45
    steps = [(p[:, :, 1:].int() - p[:, :, :-1].int()).abs() for p in pictures]
    flat = [float((step == 0).float().mean()) for step in steps]
    assert min(flat) > 0.5 and max(int(step.max()) for step in steps) > 200


def test_continuous_batches_take_it_too(folder):
    chosen = ContinuousBatches(
        folder, patch=16, queries=64, batch=16, augmentation=Augmentation(grey=1.0)
    ).batch(0)
    assert torch.equal(chosen["target"][..., 0], chosen["target"][..., 1])
    assert all(is_grey(lr) for lr in chosen["lr"])


@pytest.mark.parametrize("key", ["augmentation: {grey: 0.5}", "degradations: {}"])
def test_pairs_of_files_stay_as_they_are(tmp_path, key):
    path = tmp_path / "run.yaml"
    path.write_text(
        "network: hiet_swinir_tiny\nstage: discrete\nscale: 2\ndata: a\nlr_data: b\n"
        f"output: c\nsteps: 1\n{key}\n",
        encoding="utf-8",
    )
    name = key.partition(":")[0]
    with pytest.raises(ConfigError, match=f"{name} makes LR images of its own"):
        load_config(path, [])
