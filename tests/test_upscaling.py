"""Tiles, strips, memory and kinds of images: the picture must not depend on how it was cut.

Most tests use a network of three convolutions, whose tiles can be exact: what reaches further than
the overlap's guard would show as a seam here, in any amount.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from c2d_models import checkpoints, create, images, tiling, upscale, upscaling
from c2d_models.checkpoints import ModelInfo
from c2d_models.folders import upscale_file
from c2d_models.images import ImageData
from c2d_models.layers import Conv3x3
from c2d_models.tiling import Plan
from c2d_models.upsamplers import BilinearPixelShuffle, Network, upsampler
from c2d_models.upscaling import UpscaleError, Upscaler


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The pictures are too small to share out: a second thread would mostly wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Local(Network):
    """Sees 3 pixels around: two convolutions and the up-sampler's. `limit` plays a small memory."""

    tile_multiple, min_overlap, pad_multiple = 8, 16, 1

    def __init__(self, scale, attentions=1, limit=None):
        decoder = {"width": 8, "levels": 3, "heads": 2, "attentions": attentions}
        super().__init__(scale, {"dim": 8, "decoder": decoder})
        self.name, self.limit, self.seen = "local", limit, []
        self.first, self.second = Conv3x3(3, 8), Conv3x3(8, 8)
        self.upsample = upsampler(8, scale, BilinearPixelShuffle, decoder)

    def body(self, image):
        self.seen.append(image.shape[1:3])
        if self.limit is not None and image.shape[1] * image.shape[2] > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return self.second(torch.tanh(self.first(image)))


def local(scale, **options):
    """A `Local` whose every weight is random, also those that begin at zero."""
    torch.manual_seed(0)
    net = Local(scale, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net.eval()


def identity():
    """A continuous network that is bilinear interpolation, as all are before training."""
    return Local(None).eval()


def photo(height, width, channels=3, dtype=np.float32):
    values = np.random.default_rng(0).random((height, width, channels))
    if np.dtype(dtype).kind == "u":
        values = values * np.iinfo(dtype).max
    return values.astype(dtype)


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) + 1e-20)


SIZES = [
    pytest.param(70, 45, id="2x1 tiles"),
    pytest.param(45, 71, id="1x2 tiles"),
    pytest.param(101, 83, id="many tiles"),
    pytest.param(5, 130, id="low"),
    pytest.param(48, 48, id="one tile"),
]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("model_scale", "scale", "attentions"),
    [
        pytest.param(2, 2, 1, id="x2"),
        pytest.param(3, 3, 1, id="x3"),
        pytest.param(None, 1, 1, id="continuous x1"),
        pytest.param(None, 1.73, 1, id="continuous x1.73"),
        pytest.param(None, 4, 2, id="continuous x4, two attentions"),
    ],
)
def test_tiled_equals_untiled(model_scale, scale, attentions, height, width):
    net = local(model_scale, attentions=attentions)
    image = photo(height, width)
    whole = upscale(image, scale, model=net, tile=0)
    with torch.inference_mode():
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        direct = net(x) if model_scale else net(x, size=whole.shape[:2])
    direct = direct[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert direct.std() > 0.1 and np.abs(direct - whole).max() < 1e-5
    tiled = upscale(image, scale, model=net, tile=48)
    # Convolutions of another size may take another algorithm: float32 noise, no seam.
    assert np.abs(tiled - whole).max() < 1e-5


@pytest.mark.parametrize("scale", [2, None], ids=["discrete", "continuous"])
@pytest.mark.parametrize("strip_bytes", [1, 20_000], ids=["a row a strip", "few rows"])
def test_strips_do_not_change_the_picture(scale, strip_bytes):
    net, image = local(scale), photo(61, 40)
    factor = scale or 2.6
    out = np.zeros((round(61 * factor), round(40 * factor), 3), np.float32)
    written = np.zeros(len(out), int)

    def sink(top, rows):
        out[top : top + rows.shape[1]] = rows.permute(1, 2, 0).clamp(0, 1)
        written[top : top + rows.shape[1]] += 1

    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    plan = Plan(tile=32, overlap=16, strip_bytes=strip_bytes)
    tiling.run(net, lambda a, b, c, d: x[..., a:b, c:d], sink, (61, 40), out.shape[:2], plan)
    assert (written == 1).all()
    assert np.abs(out - upscale(image, factor, model=net, tile=0)).max() < 1e-5


@pytest.mark.parametrize("scale", [4, None], ids=["discrete", "continuous"])
@pytest.mark.parametrize("name", ["hiet_swinir_tiny", "swinir_l_tiny"])
def test_real_networks_show_no_seam(name, scale):
    torch.manual_seed(0)
    net = create(name, scale)
    for parameter in net.parameters():  # the heads begin at zero: nothing of the body would show
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    image, factor = photo(72, 208), scale or 1.5
    whole = upscale(image, factor, model=net, tile=0)
    tiled = upscale(image, factor, model=net, tile=128)
    plain = upscale(image, factor, model=create(name, None), tile=0)
    assert psnr(plain, whole) < 45, "the network adds too little for the test to mean anything"
    assert psnr(tiled, whole) > 50
    assert np.mean((tiled - whole) ** 2) < 1e-3 * np.mean((whole - plain) ** 2)


@pytest.mark.parametrize("scale", [2, None], ids=["discrete", "continuous"])
def test_tiles_halve_when_memory_runs_out(scale):
    image = photo(128, 128)
    expected = upscale(image, 2, model=local(scale), tile=0)
    net = local(scale, limit=50 * 50)
    fractions = []
    result = upscale(image, 2, model=net, tile=0, progress=fractions.append)
    sides = [max(size) for size in net.seen]
    assert sides[:2] == [128, 64] and set(sides[2:]) == {32}
    assert np.abs(result - expected).max() < 1e-5
    assert fractions[-1] == pytest.approx(1) and all(0 <= f <= 1 for f in fractions)


def test_memory_too_small_for_any_tile_is_said():
    with pytest.raises(MemoryError, match="tiles of 32 pixels, this network's smallest"):
        upscale(photo(64, 64), 2, model=local(2, limit=100))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(MemoryError(), True, id="python"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory."), True, id="cuda"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory"), True, id="cpu"),
        pytest.param(RuntimeError("[enforce fail] not enough memory: you"), True, id="windows"),
        pytest.param(RuntimeError("shapes do not match"), False, id="another error"),
    ],
)
def test_out_of_memory_is_recognised(error, expected):
    assert tiling.is_out_of_memory(error) is expected


def test_other_errors_pass_through():
    net = local(2)
    net.second = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        upscale(photo(8, 8), 2, model=net)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 48, 49, 100, 257])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 16), (48, 16), (64, 8)])
def test_tiles_cover_with_weights_that_add_up(length, tile, overlap):
    pieces = tiling.spans(length, Plan(tile, overlap, 1))
    total = torch.zeros(length)
    for (start, stop), weight in zip(pieces, tiling.ramps(pieces), strict=True):
        assert start % 8 == 0 and 0 < stop - start <= tile
        total[start:stop] += weight
    assert pieces[-1][1] == length
    assert torch.allclose(total, torch.ones(length))
    assert all(a[1] - b[0] >= overlap for a, b in pairwise(pieces))
    assert all(a[1] <= c[0] for a, c in zip(pieces, pieces[2:], strict=False))


@pytest.mark.parametrize(
    ("size", "budget", "tile", "expected"),
    [
        pytest.param((1000, 1000), 8 * 150 * 100**2, None, 96, id="what the budget allows"),
        pytest.param((1000, 1000), 1, None, 32, id="never less than two overlaps"),
        pytest.param((90, 110), 8 * 150 * 104**2, None, 112, id="an image that fits is not cut"),
        pytest.param((90, 110), 1, 0, 112, id="0 does not cut"),
        pytest.param((1000, 1000), 1, 50, 56, id="asked, rounded up"),
    ],
)
def test_plan(size, budget, tile, expected):
    plan = Plan.fit(Local(2), *size, budget, tile)
    assert (plan.tile, plan.overlap) == (expected, 16)


def test_available_memory_is_plausible():
    assert 2**26 < tiling.available_memory() < 2**45


def test_features_on_disk_make_the_same_picture(tmp_path, monkeypatch):
    net, image = local(None), photo(80, 50, dtype=np.uint8)
    images.write(tmp_path / "in.png", ImageData(image))
    expected = upscale(image, 1.5, model=net)
    files = []
    monkeypatch.setattr(tiling, "available_memory", lambda: 0)
    monkeypatch.setattr(
        torch, "from_file", lambda *a, f=torch.from_file, **k: files.append(a[0]) or f(*a, **k)
    )
    upscaler = Upscaler.load(scale=1.5, model=net, tile=32)
    upscale_file(tmp_path / "in.png", tmp_path / "out.png", upscaler)
    result = images.read(tmp_path / "out.png").pixels
    assert [Path(name).parent for name in files] == [tmp_path]
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (4,)], ids=str)
def test_arrays_come_back_as_they_were(shape, dtype):
    image = photo(9, 7, shape[0] if shape else 1, dtype)
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


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "1", "I;16"])
def test_pil_images(mode):
    if mode == "I;16":
        image = Image.fromarray(photo(8, 6, 1, np.uint16)[..., 0])
    else:
        image = Image.fromarray(photo(8, 6, 3, np.uint8)).convert(mode)
    image.info["icc_profile"] = b"profile"
    result = upscale(image, 2, model=local(2))
    kept = mode in ("L", "LA", "RGB", "RGBA", "I;16")
    assert isinstance(result, Image.Image)
    assert (result.mode, result.size) == (mode if kept else "RGB", (12, 16))
    assert result.info["icc_profile"] == b"profile"


def test_pil_orientation_is_applied():
    image = Image.fromarray(photo(8, 6, 3, np.uint8))
    image.getexif()[0x0112] = 6
    assert upscale(image, 1, model=identity()).size == (8, 6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_paths_give_arrays(tmp_path, channels):
    samples = photo(8, 6, channels, np.uint16)
    colours = 1 if channels < 3 else 3
    alpha = samples[..., colours] if channels > colours else None
    images.write(tmp_path / "a.png", ImageData(samples[..., :colours], alpha))
    result = upscale(str(tmp_path / "a.png"), 1, model=identity())
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


def test_size_that_is_the_models_own_serves_a_discrete_one():
    assert upscale(photo(5, 7), size=(15, 21), model=local(3)).shape == (15, 21, 3)
    assert upscale(photo(5, 7), model=local(3)).shape == (15, 21, 3)


@pytest.mark.parametrize(
    ("image", "options", "sentence"),
    [
        pytest.param(photo(4, 4), {"scale": 0.5}, "scale is 0.5", id="small scale"),
        pytest.param(photo(4, 4), {"scale": 4.01}, "scale is 4.01", id="large scale"),
        pytest.param(photo(4, 4), {"scale": float("nan")}, "scale is nan", id="nan"),
        pytest.param(photo(4, 4), {"scale": 2, "size": (8, 8)}, "choose one", id="scale and size"),
        pytest.param(photo(4, 4), {"size": (8, 17)}, "width 17 from 4", id="large size"),
        pytest.param(photo(4, 4), {"size": (3, 8)}, "height 3 from 4", id="small size"),
        pytest.param(photo(4, 4), {"device": "tpu"}, "device is tpu", id="device"),
        pytest.param(photo(4, 4), {"device": "cuda:99"}, "device is cuda:99", id="no such GPU"),
        pytest.param(photo(4, 4), {"dtype": "int8"}, "dtype is int8", id="dtype"),
        pytest.param(photo(4, 4), {"tile": "big"}, "tile is big", id="tile"),
        pytest.param(photo(4, 4), {"tile": -8}, "tile is -8", id="negative tile"),
        pytest.param(photo(4, 4), {"tile": 16}, "at least 32", id="small tile"),
        pytest.param(photo(4, 4).astype(int), {}, "holds int64", id="int array"),
        pytest.param(photo(4, 4, 5), {}, "shape", id="five channels"),
        pytest.param(photo(0, 4), {}, "without a pixel", id="no pixel"),
        pytest.param([[1]], {}, "is a list", id="list"),
    ],
)
def test_refusals(image, options, sentence):
    with pytest.raises(UpscaleError, match=sentence):
        upscale(image, model=identity(), **options)


def test_a_discrete_model_refuses_other_factors():
    with pytest.raises(UpscaleError, match="enlarges by 2 only"):
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
        pytest.param(TINY, None, "hiet_swinir_tiny_x4", id="4 is the default"),
        pytest.param(TINY, 2.7, "hiet_swinir_tiny_continuous", id="continuous else"),
        pytest.param(TINY[1:], 4, "hiet_swinir_tiny_continuous", id="continuous can do 4"),
        pytest.param(TINY + FULL, 4, "hiet_swinir_x4", id="full before tiny and others"),
        pytest.param(TINY + FULL, 2, "hiet_swinir_continuous", id="full continuous"),
    ],
)
def test_the_shipped_model_for_a_scale(monkeypatch, models, scale, expected):
    monkeypatch.setattr(checkpoints, "list_models", lambda: shipped(*models))
    assert upscaling.choose_model(scale) == expected


def test_no_shipped_model_is_said(monkeypatch):
    monkeypatch.setattr(checkpoints, "list_models", lambda: shipped(TINY[0]))
    with pytest.raises(UpscaleError, match=r"no shipped model serves scale 2\.7"):
        upscaling.choose_model(2.7)
