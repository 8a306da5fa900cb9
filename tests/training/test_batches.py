"""Batches: patches of photographs on one grid, pairs of files, positions and scales."""

import numpy as np
import pytest
import torch

from c2d_models.errors import DataError
from c2d_models.images import resize, sets
from c2d_models.images.resize import imresize
from c2d_models.training.batches import ContinuousBatches, DiscreteBatches
from tests.images.samples import noise, write

HEIGHT, WIDTH = 150, 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One picture that says where one is: red = row, green = column; blue is noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    path = tmp_path_factory.mktemp("photos")
    write(path / "photo.png", np.stack((y, x, noise(HEIGHT, WIDTH, seed=3)), -1))
    return path


@pytest.fixture(scope="module")
def photo(folder):
    return sets.read_rgb(folder / "photo.png")


def undo(image, turn):
    """The patch as it lies in the photograph."""
    return sets.orient(sets.orient(image, turn & 6), turn & 1)


def find_turn(hr):
    """Which of the 8 symmetries a patch of `photo` has gone through."""
    for turn in range(8):
        patch = undo(hr, turn)
        if patch[0, 1, 0] > patch[0, 0, 0] and patch[1, 0, 1] > patch[1, 0, 0]:
            return turn
    raise AssertionError("not a patch of the photograph")


@pytest.mark.parametrize("turn", range(8))
def test_orient_has_its_inverse(turn):
    image = torch.from_numpy(noise(3, 5, 7))
    assert torch.equal(undo(sets.orient(image, turn), turn), image)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_discrete_patches_are_crops_of_the_reduced_photograph(photo, folder, scale):
    batches = DiscreteBatches(folder, scale=scale, patch=16, batch=24, seed=5)
    batch = batches.batch(0)
    assert batch["lr"].shape == (24, 3, 16, 16) and batch["hr"].shape[-2:] == (16 * scale,) * 2
    assert batch["lr"].dtype == batch["hr"].dtype == torch.float32
    turns = set()
    for lr, hr in zip((batch["lr"] * 255).round(), (batch["hr"] * 255).round(), strict=True):
        turn = find_turn(hr)
        turns.add(turn)
        lr, hr = undo(lr, turn), undo(hr, turn)
        top, left = int(hr[0, 0, 0]), int(hr[1, 0, 0])
        assert torch.equal(hr, photo[:, top:, left:][:, : 16 * scale, : 16 * scale].float())
        # The whole photograph reduced on the same grid, its own edges included.
        grid = photo[:, top % scale :, left % scale :]
        size = [n // scale for n in grid.shape[-2:]]
        rows = resize.resize_taps(size[0], 1 / scale, HEIGHT, origin=top % scale)
        columns = resize.resize_taps(size[1], 1 / scale, WIDTH, origin=left % scale)
        reduced = resize.resample(photo.double(), -2, *rows).add(0.5).floor().clamp(0, 255)
        reduced = resize.resample(reduced, -1, *columns).add(0.5).floor().clamp(0, 255)
        expected = reduced[:, top // scale :, left // scale :][:, :16, :16]
        if scale == 3:  # float32 may fall to the other side of a half
            assert (lr - expected).abs().max() <= 1 and (lr == expected).float().mean() > 0.999
        else:
            assert torch.equal(lr, expected.float())
    assert len(turns) == 8


@pytest.mark.parametrize("scale", [2, 4])
def test_a_patch_of_the_whole_photograph_is_imresize(tmp_path, scale):
    pixels = noise(12 * scale, 12 * scale, 3)
    write(tmp_path / "a.png", pixels)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    lr = DiscreteBatches(tmp_path, scale=scale, patch=12, batch=1).batch(0)["lr"][0]
    candidates = [sets.orient(imresize(image, 1 / scale), turn) / 255 for turn in range(8)]
    assert any(torch.equal(lr, each) for each in candidates)


def test_pairs_are_cut_on_one_grid(folder, tmp_path):
    """LR files that say where one is, as the photograph does: rows and columns must agree."""
    scale, patch = 3, 16
    y, x = np.mgrid[: HEIGHT // scale, : WIDTH // scale].astype(np.uint8)
    lr_file = write(tmp_path / f"photox{scale}.png", np.stack((y, x, 0 * x), -1))
    files, lr_files, _ = sets.pair_files(folder, tmp_path, scale)
    pairs = dict(zip(files, lr_files, strict=True))
    assert list(pairs.values()) == [lr_file]
    batches = DiscreteBatches(files, scale=scale, patch=patch, batch=24, seed=5, lr_files=pairs)
    batch, turns, places = batches.batch(2), set(), set()
    for lr, hr in zip((batch["lr"] * 255).round(), (batch["hr"] * 255).round(), strict=True):
        turn = find_turn(hr)
        lr, hr = undo(lr, turn), undo(hr, turn)
        assert lr.shape == (3, patch, patch) and hr.shape == (3, scale * patch, scale * patch)
        assert torch.equal(hr[:2, ::scale, ::scale], lr[:2] * scale)
        turns.add(turn)
        places.add((lr[0, 0, 0].item(), lr[1, 0, 0].item()))
    assert len(turns) == 8 and len(places) > 15
    assert max(places)[0] <= HEIGHT // scale - patch


PAIR_REFUSALS = [
    pytest.param("photox2.png", (20, 30, 3), "do not belong together", id="size"),
    pytest.param("other.png", (75, 90, 3), "holds no photox2.png, the LR file of", id="missing"),
]


@pytest.mark.parametrize(("name", "shape", "sentence"), PAIR_REFUSALS)
def test_pairs_that_do_not_fit_are_refused(folder, tmp_path, name, shape, sentence):
    write(tmp_path / name, noise(*shape))

    def pair_and_cut():
        files, lr_files, _ = sets.pair_files(folder, tmp_path, 2)
        DiscreteBatches(files, scale=2, patch=16, lr_files=dict(zip(files, lr_files, strict=True)))

    with pytest.raises(DataError, match=sentence):
        pair_and_cut()


def test_a_pair_with_an_unreadable_lr_file_is_left_out(folder, tmp_path):
    pixels = noise(64, 64, 3)
    files = [folder / "photo.png", write(tmp_path / "hr" / "b.png", pixels)]
    lr_files = [tmp_path / "broken.png", write(tmp_path / "lr" / "b.png", pixels[::2, ::2])]
    lr_files[0].write_bytes(b"nothing")
    pairs = dict(zip(files, lr_files, strict=True))
    batches = DiscreteBatches(files, scale=2, patch=16, lr_files=pairs)
    assert batches.files == files[1:] and len(batches.left_out) == 1
    assert "broken.png" in batches.left_out[0]
    values = batches.batch(0)
    assert set(values["lr"].unique().tolist()) <= set(values["hr"].unique().tolist())


def test_continuous_coordinates_agree_with_both_grids(photo, folder):
    patch, queries = 32, 900
    batches = ContinuousBatches(folder, patch=patch, queries=queries, batch=32, seed=1)
    batch = batches.batch(7)
    sides = (2 / batch["cell"]).round().int()
    assert torch.equal(sides[:, 0], sides[:, 1]) and sides.min() >= 32 and sides.max() <= 128
    assert len(set(sides[:, 0].tolist())) > 20
    assert batch["coords"].shape == batch["target"].shape[:2] + (2,) == (32, queries, 2)
    found, wanted = [], []
    for lr, coords, target, side in zip(
        batch["lr"] * 255, batch["coords"].double(), batch["target"] * 255, sides[:, 0], strict=True
    ):
        side = int(side)
        row, column, blue = target.round().int().unbind(-1)
        assert torch.equal(photo[2, row, column].int(), blue)
        # Positions in the patch; each pixel at most once, on the HR grid.
        place = ((coords + 1) * side - 1) / 2
        assert (place - place.round()).abs().max() < 1e-4
        place = place.round()
        assert len({(y, x) for y, x in place.tolist()}) == queries
        # Row and column of the photograph are an affine function of the position ...
        design = torch.cat((place, torch.ones(queries, 1)), -1).double()
        where = torch.stack((row, column), -1).double()
        affine = torch.linalg.lstsq(design, where).solution
        assert (design @ affine - where).abs().max() < 1e-6
        # ... and LR pixels show the rows and columns that this function has at their centres.
        centre = (torch.arange(patch, dtype=torch.float64) + 0.5) * side / patch - 0.5
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        expected = torch.stack((y, x, torch.ones_like(y)), -1) @ affine
        limit = torch.tensor([HEIGHT, WIDTH]) - 1.0
        inside = ((expected > 8) & (expected < limit - 8)).all(-1)
        found.append(lr[:2].round().double().permute(1, 2, 0)[inside])
        wanted.append((expected + 0.5 + 1e-6)[inside].floor())
    error = torch.cat(found) - torch.cat(wanted)
    # A stretched cubic is out by up to 0.03: one grey level, where that passes a half.
    assert error.abs().max() <= 1 and (error != 0).double().mean() < 0.01


def test_scale_one_gives_the_photograph_itself(photo, folder):
    batch = ContinuousBatches(folder, patch=16, queries=256, scale=(1, 1), batch=4).batch(0)
    for lr, coords, target in zip(batch["lr"], batch["coords"], batch["target"], strict=True):
        y, x = (((coords + 1) * 16 - 1) / 2).round().long().unbind(-1)
        assert torch.equal(lr[:, y, x].T, target)


def test_small_photographs_lower_the_scale(tmp_path):
    write(tmp_path / "a.png", noise(40, 90, 3))
    batches = ContinuousBatches(tmp_path, patch=32, queries=10, scale=(1, 4), batch=16)
    sides = (2 / batches.batch(0)["cell"][:, 0]).round()
    assert sides.max() == 40 and sides.min() >= 32


@pytest.mark.parametrize("kind", [ContinuousBatches, DiscreteBatches])
def test_batches_are_a_function_of_seed_step_and_sample(folder, kind):
    make = {"patch": 16, "queries": 50} if kind is ContinuousBatches else {"patch": 16, "scale": 2}
    four = kind(folder, batch=4, seed=9, **make)
    two = kind(folder, batch=2, seed=9, **make)
    four.batch(3)  # what was drawn before does not matter
    whole = four.batch(5)
    assert all(value.dtype == torch.float32 for value in whole.values())
    halves = [two.batch(5, rank=rank) for rank in (0, 1)]
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([half[key] for half in halves])), key
    other = [four.batch(6), kind(folder, batch=4, seed=10, **make).batch(5)]
    assert not any(torch.equal(whole["lr"], each["lr"]) for each in other)


BATCH_REFUSALS = [
    pytest.param(ContinuousBatches, {"scale": (0.5, 4)}, "scale is .*1 <= lowest", id="shrink"),
    pytest.param(ContinuousBatches, {"scale": (3, 2)}, "scale is .*lowest <= highest", id="order"),
    pytest.param(ContinuousBatches, {"patch": 16, "queries": 257}, "give 1 to 256", id="queries"),
    pytest.param(ContinuousBatches, {"patch": 160}, "photo.png is 180x150; .*160x160", id="small"),
    pytest.param(DiscreteBatches, {"scale": 2.5}, "scale is 2.5; give a whole number", id="real"),
    pytest.param(
        DiscreteBatches, {"patch": 64, "scale": 3}, "at least 192x192: remove", id="small-x3"
    ),
    pytest.param(DiscreteBatches, {"batch": 0}, "batch is 0; give at least 1", id="no-samples"),
]


@pytest.mark.parametrize(("kind", "arguments", "sentence"), BATCH_REFUSALS)
def test_batches_refuse(folder, kind, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(folder, **arguments)
