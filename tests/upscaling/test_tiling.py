"""Tiles, strips and memory: the picture must not depend on how it was cut."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from c2d_models import create, devices, upscale
from c2d_models.images import image_file
from c2d_models.images.image_file import ImageData
from c2d_models.networks.maps import mirror_index
from c2d_models.upscaling import storage, tiling
from c2d_models.upscaling.batch import upscale_file
from c2d_models.upscaling.jobs import Job
from c2d_models.upscaling.target import Target
from c2d_models.upscaling.tiling import Plan
from c2d_models.upscaling.upscaler import MARGIN, Upscaler
from tests.upscaling.local_network import Local, local, photo, psnr

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


@pytest.mark.parametrize(("height", "width"), [*SIZES, pytest.param(1, 3, id="tiny")])
@pytest.mark.parametrize("scale", [2, None], ids=["discrete", "continuous"])
def test_a_trained_network_sees_a_mirrored_margin(scale, height, width):
    """As if the picture had been mirrored by hand and the result cropped."""
    net, image = local(scale), photo(height, width)
    net.record = {"steps": 1}
    if scale is None:
        net.upsample.decoder.mlps[-1].fc2.weight.data *= 4  # so that it adds more
    wide = image[mirror_index(height, height + 2 * MARGIN, start=-MARGIN)]
    wide = wide[:, mirror_index(width, width + 2 * MARGIN, start=-MARGIN)]
    with torch.inference_mode():
        x, wide = (torch.from_numpy(each).permute(2, 0, 1)[None] for each in (image, wide))
        inner = slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width)
        features = net.encode(wide)[:, inner[0], inner[1]]
        size = {} if scale else {"size": (2 * height, 2 * width)}
        expected = net.decode(features, x, **size)[0].permute(1, 2, 0).clamp(0, 1).numpy()
    for tile in (0, 48):
        assert np.abs(upscale(image, 2, model=net, tile=tile) - expected).max() < 1e-5
    net.record = {}
    assert np.abs(upscale(image, 2, model=net) - expected).max() > 1e-4, "the margin shows"


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
    assert devices.is_out_of_memory(error) is expected


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
    assert 2**26 < devices.available_memory() < 2**45


def test_features_on_disk_make_the_same_picture(tmp_path, monkeypatch):
    net, image = local(None), photo(80, 50, dtype=np.uint8)
    image_file.write(tmp_path / "in.png", ImageData(image))
    expected = upscale(image, 1.5, model=net)
    files = []
    monkeypatch.setattr(storage, "available_memory", lambda: 0)
    monkeypatch.setattr(
        torch, "from_file", lambda *a, f=torch.from_file, **k: files.append(a[0]) or f(*a, **k)
    )
    upscaler = Upscaler.load(Target(1.5), net, tile=32)
    upscale_file(Job(tmp_path / "in.png", tmp_path / "out.png"), upscaler)
    result = image_file.read(tmp_path / "out.png").pixels
    assert [Path(name).parent for name in files] == [tmp_path]
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]
