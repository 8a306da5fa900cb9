"""The bicubic resize against loops and PyTorch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from c2d_models.images import resize
from c2d_models.images.resize import imresize
from tests.images.samples import noise


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
@pytest.mark.parametrize(("height", "width", "target"), RESIZES)
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


@pytest.mark.parametrize(("arguments", "error", "sentence"), REFUSALS)
def test_imresize_refuses(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        imresize(torch.zeros(3, 8, 8), **arguments)


def test_imresize_refuses_integers():
    with pytest.raises(TypeError, match=r"image is torch.int64; give a floating point or uint8"):
        imresize(torch.zeros(3, 8, 8, dtype=torch.int64), 0.5)


@pytest.mark.parametrize(
    ("height", "width", "scale", "lr_size", "hr_size"),
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
    lr, hr = resize.lr_pair(image, scale)
    assert (tuple(lr.shape[-2:]), tuple(hr.shape[-2:])) == (lr_size, hr_size)
    assert torch.equal(hr, image[:, : hr_size[0], : hr_size[1]])
    assert torch.equal(lr, imresize(hr, size=lr_size))


@pytest.mark.parametrize("scale", [0.5, 9.0, math.nan])
def test_lr_pair_refuses(scale):
    with pytest.raises(ValueError, match=r"scale is .* for an image of 12x8; give a number from 1"):
        resize.lr_pair(torch.zeros(3, 8, 12), scale)
