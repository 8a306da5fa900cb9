"""Sets of images: what a folder holds, what is held out, how files are read."""

import numpy as np
import pytest
import torch

from c2d_models.errors import DataError
from c2d_models.images import sets
from tests.images.samples import noise, write


def test_list_images(tmp_path):
    for name in ("b.png", "sub/a.JPG", "sub/.hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [tmp_path / name for name in ("b.png", "c.webp", "sub/a.JPG")]
    assert sets.list_images(tmp_path) == files
    assert sets.list_images([tmp_path / "sub", files[0]]) == [files[2], files[0]]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        pytest.param("absent", "absent does not exist; give a folder of images", id="missing"),
        pytest.param("empty", "empty holds no image; it needs files ending in .*png", id="empty"),
    ],
)
def test_list_images_refuses(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=sentence):
        sets.list_images(tmp_path / name)


def test_split_keeps_photographs_whole_and_files_in_place(tmp_path):
    files = [tmp_path / f"photo{i}_{j:02d}.png" for i in range(400) for j in range(3)]
    training, held_out = sets.split(files)
    assert sorted(training + held_out) == sorted(files)
    assert 0.03 < len(held_out) / len(files) < 0.07
    names = [{file.stem.split("_")[0] for file in side} for side in (training, held_out)]
    assert not names[0] & names[1]
    # Other files, another order or another folder change nothing for those that stay.
    fewer = [tmp_path / "moved" / file.name for file in reversed(files[:600])]
    fewer_held_out = {file.name for file in sets.split(fewer)[1]}
    assert fewer_held_out == {file.name for file in held_out} & {file.name for file in fewer}


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        pytest.param(["a"], (1, 0), id="one"),
        pytest.param(["a_1", "a_2"], (2, 0), id="one-photograph"),
        pytest.param(["a", "b"], (1, 1), id="two"),
    ],
)
def test_split_of_few(tmp_path, names, sizes):
    training, held_out = sets.split([tmp_path / f"{name}.png" for name in names])
    assert (len(training), len(held_out)) == sizes


def test_split_refuses():
    with pytest.raises(ValueError, match="every is 1; give at least 2"):
        sets.split([], every=1)


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
        got = sets.read_rgb(write(tmp_path / name, pixels))
        assert got.dtype == torch.uint8
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), expected, err_msg=name)
