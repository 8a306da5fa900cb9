"""The bicubic resize against loops and PyTorch, folders and the split, and what a batch holds."""

import math

import numpy as np
import pytest
import pyvips
import torch
import torch.nn.functional as F

from c2d_models import data
from c2d_models.batches import ContinuousBatches, DiscreteBatches
from c2d_models.data import DataError, imresize


def write(path, pixels):
    """Write an array (H, W, C) or (H, W) as the image file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).write_to_file(str(path))
    return path


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# imresize ------------------------------------------------------------------------------------


def matlab_resize(image, scale, size, boundary, rounded):
    """MATLAB's `imresize`, pixel by pixel with its 1-based indices; image (H, W) of floats."""

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def fold(j, n):
        if boundary == "replicate":
            return min(max(j, 1), n)
        mirror = list(range(1, n + 1)) + list(range(n, 0, -1))
        return mirror[(j - 1) % len(mirror)]

    def along_rows(image, n_out, s):
        n = len(image)
        shrink = min(s, 1.0)
        width = 4.0 / shrink
        result = np.zeros((n_out, image.shape[1]))
        for x in range(1, n_out + 1):
            u = x / s + 0.5 * (1 - 1 / s)
            left = math.floor(u - width / 2)
            total = 0.0
            for j in range(left, left + math.ceil(width) + 2):
                weight = shrink * kernel(shrink * (u - j))
                result[x - 1] += weight * image[fold(j, n) - 1]
                total += weight
            result[x - 1] /= total
        return np.clip(np.floor(result + 0.5), 0, 255) if rounded else result

    passes = [(0, size[0], scale[0]), (1, size[1], scale[1])]
    for axis, n_out, s in sorted(passes, key=lambda each: each[2]):
        image = along_rows(image, n_out, s) if axis == 0 else along_rows(image.T, n_out, s).T
    return image


RESIZES = [
    # height, width, scale or size
    pytest.param(12, 16, 1 / 2, id="half"),
    pytest.param(15, 21, 1 / 3, id="third"),
    pytest.param(16, 24, 1 / 4, id="quarter"),
    pytest.param(13, 19, 1 / 4, id="quarter-of-odd"),
    pytest.param(17, 23, 1 / 2.7, id="real"),
    pytest.param(17, 23, 0.93, id="slightly-smaller"),
    pytest.param(9, 7, 1.0, id="same"),
    pytest.param(7, 5, 3.0, id="enlarge"),
    pytest.param(7, 5, 2.3, id="enlarge-real"),
    pytest.param(11, 18, (5, 7), id="size"),
    pytest.param(8, 19, (13, 6), id="size-up-and-down"),
    pytest.param(2, 3, 1 / 4, id="kernel-wider-than-image"),
    pytest.param(1, 1, 4.0, id="one-pixel"),
]


@pytest.mark.parametrize("boundary", ["symmetric", "replicate"])
@pytest.mark.parametrize("height, width, target", RESIZES)
def test_imresize_is_matlabs(height, width, target, boundary):
    pixels = noise(2, height, width)
    if isinstance(target, tuple):
        size, scale, asked = target, (target[0] / height, target[1] / width), {"size": target}
    else:
        size = math.ceil(height * target), math.ceil(width * target)
        scale, asked = (target, target), {"scale": target}
    expected = np.stack(
        [matlab_resize(p.astype(float), scale, size, boundary, rounded=False) for p in pixels]
    )
    got = imresize(torch.from_numpy(pixels).double(), **asked, boundary=boundary)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)
    got = imresize(torch.from_numpy(pixels).float(), **asked, boundary=boundary)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-4)
    # uint8 is rounded after each axis; the two orders of summation may part only at a tie.
    rounded = [matlab_resize(p.astype(float), scale, size, boundary, rounded=True) for p in pixels]
    got = imresize(torch.from_numpy(pixels), **asked, boundary=boundary)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), np.stack(rounded))


@pytest.mark.parametrize("boundary", ["symmetric", "replicate"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_reduction_is_torch_antialias_on_a_padded_image(scale, boundary):
    image = torch.rand(1, 3, 8 * scale, 11 * scale, generator=torch.Generator().manual_seed(1))
    image = image.double()
    pad = 2 * scale  # two LR pixels: the kernel reaches no further
    mode = {"symmetric": "symmetric", "replicate": "edge"}[boundary]
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode))
    expected = F.interpolate(
        padded, size=(8 + 4, 11 + 4), mode="bicubic", antialias=True, align_corners=False
    )[..., 2:-2, 2:-2]
    torch.testing.assert_close(
        imresize(image, 1 / scale, boundary=boundary), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("factor", [3, 2.5, 1 / 3, 1 / 2.7])
def test_centres_stay_in_place(factor):
    """A ramp stays the ramp of the same positions; a stretched cubic is out by at most 1 %."""
    ramp = torch.arange(60, dtype=torch.float64).expand(4, 60)
    got = imresize(ramp, factor)[0]
    centres = (torch.arange(len(got), dtype=torch.float64) + 0.5) / factor - 0.5
    inside = (centres > 8) & (centres < 51)
    exact = factor > 1 or round(1 / factor) == 1 / factor
    error = (got - centres)[inside]
    assert error.abs().max() < (1e-10 if exact else 0.01)
    assert abs(error.mean()) < 1e-3


def test_imresize_is_differentiable():
    image = torch.rand(1, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: imresize(x, size=(4, 5)), (image,))


REFUSALS = [
    pytest.param({"scale": 2.0, "size": (4, 4)}, ValueError, "either scale or size", id="both"),
    pytest.param({}, ValueError, "either scale or size", id="neither"),
    pytest.param({"scale": 0.0}, ValueError, "scale is 0.0; give a number above 0", id="zero"),
    pytest.param({"scale": math.nan}, ValueError, "scale is nan", id="nan"),
    pytest.param({"size": (0, 3)}, ValueError, r"size is \(0, 3\)", id="no-rows"),
    pytest.param({"scale": 0.5, "boundary": "wrap"}, ValueError, "boundary is 'wrap'", id="wrap"),
]


@pytest.mark.parametrize("arguments, error, sentence", REFUSALS)
def test_imresize_refuses(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        imresize(torch.zeros(3, 8, 8), **arguments)


def test_imresize_refuses_integers():
    with pytest.raises(TypeError, match=r"image is torch.int64; give a floating point or uint8"):
        imresize(torch.zeros(3, 8, 8, dtype=torch.int64), 0.5)


@pytest.mark.parametrize(
    "height, width, scale, lr_size, hr_size",
    [
        pytest.param(48, 64, 4, (12, 16), (48, 64), id="whole"),
        pytest.param(50, 67, 4, (12, 16), (48, 64), id="crop"),
        pytest.param(50, 67, 2.7, (18, 24), (49, 65), id="real"),
        pytest.param(50, 66, 3.3, (15, 20), (50, 66), id="3.3-divides-66"),
        pytest.param(30, 31, 1.0, (30, 31), (30, 31), id="one"),
    ],
)
def test_lr_pair_covers_one_area(height, width, scale, lr_size, hr_size):
    image = torch.from_numpy(noise(3, height, width))
    lr, hr = data.lr_pair(image, scale)
    assert (tuple(lr.shape[-2:]), tuple(hr.shape[-2:])) == (lr_size, hr_size)
    assert torch.equal(hr, image[:, : hr_size[0], : hr_size[1]])
    assert torch.equal(lr, imresize(hr, size=lr_size))


@pytest.mark.parametrize("scale", [0.5, 9.0, math.nan])
def test_lr_pair_refuses(scale):
    with pytest.raises(ValueError, match=r"scale is .* for an image of 12x8; give a number from 1"):
        data.lr_pair(torch.zeros(3, 8, 12), scale)


def test_quantise():
    values = torch.tensor([-0.2, 0.0, 0.49 / 255, 0.5 / 255, 100.4 / 255, 254.6 / 255, 1.3])
    assert (data.quantise(values) * 255).round().tolist() == [0, 0, 0, 1, 100, 255, 255]


# Folders -------------------------------------------------------------------------------------


def test_list_images(tmp_path):
    for name in ("b.png", "sub/a.JPG", "sub/.hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [tmp_path / name for name in ("b.png", "c.webp", "sub/a.JPG")]
    assert data.list_images(tmp_path) == files
    assert data.list_images([tmp_path / "sub", files[0]]) == [files[2], files[0]]


@pytest.mark.parametrize(
    "name, sentence",
    [
        pytest.param("absent", "absent does not exist; give a folder of images", id="missing"),
        pytest.param("empty", "empty holds no image; it needs files ending in .*png", id="empty"),
    ],
)
def test_list_images_refuses(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=sentence):
        data.list_images(tmp_path / name)


def test_split_keeps_photographs_whole_and_files_in_place(tmp_path):
    files = [tmp_path / f"photo{i}_{j:02d}.png" for i in range(400) for j in range(3)]
    training, held_out = data.split(files)
    assert sorted(training + held_out) == sorted(files)
    assert 0.03 < len(held_out) / len(files) < 0.07
    names = [{file.stem.split("_")[0] for file in side} for side in (training, held_out)]
    assert not names[0] & names[1]
    # Other files, another order or another folder change nothing for those that stay.
    fewer = [tmp_path / "moved" / file.name for file in reversed(files[:600])]
    fewer_held_out = {file.name for file in data.split(fewer)[1]}
    assert fewer_held_out == {file.name for file in held_out} & {file.name for file in fewer}


@pytest.mark.parametrize(
    "names, sizes",
    [
        pytest.param(["a"], (1, 0), id="one"),
        pytest.param(["a_1", "a_2"], (2, 0), id="one-photograph"),
        pytest.param(["a", "b"], (1, 1), id="two"),
    ],
)
def test_split_of_few(tmp_path, names, sizes):
    training, held_out = data.split([tmp_path / f"{name}.png" for name in names])
    assert (len(training), len(held_out)) == sizes


def test_split_refuses():
    with pytest.raises(ValueError, match="every is 1; give at least 2"):
        data.split([], every=1)


def test_read_rgb(tmp_path):
    rgb, grey, deep = noise(4, 5, 3), noise(4, 5, 1, seed=1), noise(4, 5, 3, dtype=np.uint16)
    alpha = np.concatenate((rgb, noise(4, 5, 1, seed=2)), axis=-1)
    cases = {
        "rgb.png": (rgb, rgb),
        "alpha.png": (alpha, rgb),
        "grey.png": (grey, grey.repeat(3, axis=-1)),
        "deep.png": (deep, np.round(deep / 257)),
    }
    for name, (pixels, expected) in cases.items():
        got = data.read_rgb(write(tmp_path / name, pixels))
        assert got.dtype == torch.uint8
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), expected, err_msg=name)


# Batches -------------------------------------------------------------------------------------

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
    return data.read_rgb(folder / "photo.png")


def undo(image, turn):
    """The patch as it lies in the photograph."""
    return data.orient(data.orient(image, turn & 6), turn & 1)


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
    assert torch.equal(undo(data.orient(image, turn), turn), image)


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
        rows = data.bicubic_taps(size[0], 1 / scale, HEIGHT, origin=top % scale)
        columns = data.bicubic_taps(size[1], 1 / scale, WIDTH, origin=left % scale)
        reduced = data.resample(photo.double(), -2, *rows).add(0.5).floor().clamp(0, 255)
        reduced = data.resample(reduced, -1, *columns).add(0.5).floor().clamp(0, 255)
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
    candidates = [data.orient(imresize(image, 1 / scale), turn) / 255 for turn in range(8)]
    assert any(torch.equal(lr, each) for each in candidates)


def test_pairs_are_cut_on_one_grid(folder, tmp_path):
    """LR files that say where one is, as the photograph does: rows and columns must agree."""
    scale, patch = 3, 16
    y, x = np.mgrid[: HEIGHT // scale, : WIDTH // scale].astype(np.uint8)
    lr_file = write(tmp_path / f"photox{scale}.png", np.stack((y, x, 0 * x), -1))
    files, lr_files, _ = data.pair_files(folder, tmp_path, scale)
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


@pytest.mark.parametrize("name, shape, sentence", PAIR_REFUSALS)
def test_pairs_that_do_not_fit_are_refused(folder, tmp_path, name, shape, sentence):
    write(tmp_path / name, noise(*shape))
    with pytest.raises(DataError, match=sentence):
        files, lr_files, _ = data.pair_files(folder, tmp_path, 2)
        DiscreteBatches(files, scale=2, patch=16, lr_files=dict(zip(files, lr_files, strict=True)))


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


@pytest.mark.parametrize("kind, arguments, sentence", BATCH_REFUSALS)
def test_batches_refuse(folder, kind, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(folder, **arguments)
