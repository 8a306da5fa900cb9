"""Pictures of an evaluation: which region they show, what they hold, what is refused."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from c2d_models import create
from c2d_models.cli import main
from c2d_models.evaluation import pictures
from c2d_models.evaluation import run as evaluation
from c2d_models.evaluation.results import ImageScore, Result
from c2d_models.networks import checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny checkpoints that start at bilinear interpolation: x2.safetensors, any.safetensors."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, scale in (("x2", 2), ("any", None)):
        net = create("swinir_l_tiny", scale, config={"depths": [1], "dim": 8, "num_heads": 2})
        checkpoint.save(net, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Set2: plain.png, grey but for a few stripes, and busy.png with a chessboard at (56, 32)."""
    folder = tmp_path / "Set2"
    folder.mkdir()
    plain = np.full((120, 100, 3), 128, np.uint8)
    plain[:, 90::4] = 0
    Image.fromarray(plain).save(folder / "plain.png")
    busy = np.full((130, 180, 3), (200, 60, 30), np.uint8)
    y, x = np.mgrid[:64, :64]
    busy[32:96, 56:120] = 255 * ((x // 4 + y // 4) % 2)[..., None]
    Image.fromarray(busy).save(folder / "busy.png")
    return folder


def drawn(photos, models, folder, names=("x2", "any"), **options):
    nets = [str(models / f"{name}.safetensors") for name in names]
    console = Console(file=io.StringIO(), width=200)
    options = {"device": "cpu", "console": console, "pictures": folder, **options}
    evaluation.run(nets, [photos], scales=[2], **options)
    assert all(str(file) in console.file.getvalue() for file in folder.iterdir())
    return {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in folder.iterdir()}


@pytest.mark.parametrize("crop", [None, (60, 40, 32)], ids=["chosen", "given"])
def test_three_pictures(photos, models, tmp_path, monkeypatch, crop):
    monkeypatch.setattr(pictures, "STEPS", 2)
    monkeypatch.setattr(pictures, "CROP", 64)
    images = drawn(photos, models, tmp_path / "new" / "pictures", crop=crop)
    sizes = {"psnr_gmacs": (4.6, 4.5), "crops": (8.8, 2.9), "attribution": (6.7, 2.9)}
    assert images.keys() == sizes.keys()
    for name, (width, height) in sizes.items():
        shape = images[name].shape[:2]
        assert shape == pytest.approx((height * 150, width * 150), abs=2), name
        assert (images[name] == 255).all(-1).mean() < 0.95, name
    # The chessboard is half black in HR, which makes 0.08, and a little less where it is blurred.
    assert (images["crops"] < 40).all(-1).mean() > 0.1
    # Points in matplotlib's first two colours, and a frame and its pixels in red.
    blue, orange = (np.array(rgb) for rgb in ((31, 119, 180), (255, 127, 14)))
    for colour in (blue, orange):
        assert (images["psnr_gmacs"] == colour).all(-1).any()
    assert (images["attribution"] == (255, 0, 0)).all(-1).sum() > 100


def test_bicubic_alone_has_crops_alone(photos, tmp_path):
    assert drawn(photos, tmp_path, tmp_path / "out", names=()).keys() == {"crops"}


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        pytest.param(None, ("busy", 56, 32, 64), id="most edges"),
        pytest.param((84, 0, 16), ("plain", 84, 0, 16), id="where plain has the edges"),
        pytest.param((150, 10, 30), ("busy", 150, 10, 30), id="outside plain"),
    ],
)
def test_the_region_with_most_edges_is_shown(photos, tmp_path, monkeypatch, crop, expected):
    monkeypatch.setattr(pictures, "CROP", 64)
    region = pictures.plan(tmp_path, [photos], [2], crop)[0]
    assert (region.name, region.left, region.top, region.size) == expected


@pytest.mark.parametrize(("scale", "left", "top"), [(2, 0, 0), (2.5, 150, 90), (4, 700, 31)])
def test_the_window_is_where_the_region_has_most_edges(scale, left, top):
    hr = torch.zeros(3, round(70 * scale), round(240 * scale), dtype=torch.uint8)
    hr[:, top + 16 : top + 32 : 2, left + 8 : left + 24] = 255
    lr = torch.zeros(3, 70, 240, dtype=torch.uint8) + torch.arange(240, dtype=torch.uint8)
    region = pictures.Excerpt(0, "a", lr, hr, scale, left, top, 48)
    piece, (x, y, size) = pictures._around(region)
    assert piece.shape == (3, 64, 64) and size == 16
    assert x / scale + piece[0, 0, 0].item() == pytest.approx((left + 8) / scale, abs=0.3)
    assert y <= top + 16 <= y + 6 * scale and (x, y) <= (64 * scale - 16,) * 2


def test_points_lie_at_cost_and_quality():
    def result(model, params, gmacs, psnr):
        fields = (model, params, gmacs, "Set", 4.0, "liif", 4, "files", False, "cpu")
        return Result(*fields, (ImageScore("a", psnr, 0.9, 1.0),))

    results = [result("bicubic", 0, 0.0, 28.4), result("s", 1e5, 2.0, 30), result("l", 4e5, 90, 31)]
    region = pictures.Excerpt(0, "a", torch.zeros(3, 9, 9), torch.zeros(3, 36, 36), 4.0, 0, 0, 9)
    labels = {name: name for name in ("bicubic", "s", "l")}
    figure = pictures.psnr_gmacs([pictures.Row(region, results)], labels)
    axes = figure.axes[0]
    points = [points.get_offsets()[0].tolist() for points in axes.collections]
    areas = [points.get_sizes()[0] for points in axes.collections]
    assert points == [[2.0, 30.0], [90.0, 31.0]] and areas[1] == 4 * areas[0]
    assert axes.get_xscale() == "log" and axes.lines[0].get_ydata()[0] == 28.4
    assert axes.get_title() == "Set x4" and axes.get_ylabel() == "PSNR-Y, dB (rule liif)"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["bicubic", "s, 100 K parameters", "l, 400 K parameters"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["bicubic", "a_x4"], ["bicubic", "a_x4"], id="shipped"),
        pytest.param(["/m/x.safetensors", "y.pth"], ["x", "y.pth"], id="files"),
        pytest.param(["r/a/m.safetensors", "r/b/m.safetensors"], ["a/m", "b/m"], id="folders"),
        pytest.param(["m", "m.safetensors"], ["m", "m.safetensors"], id="same"),
    ],
)
def test_short_names(names, expected):
    assert pictures.short_names(names) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--crop 1,2,8", "give a folder of pictures too"),
        ("--pictures out --crop 1,2", "crop is 1,2; write left, top and side in HR pixels"),
        ("--pictures out --crop 1,-2,8", "crop is 1,-2,8; write left"),
        (
            "--pictures out --crop 150,100,31",
            "no image of Set2 at scale 2 holds the crop 150,100,31",
        ),
        (
            "--pictures out --crop 5,5,1",
            "holds the crop 5,5,1 (x,y,size; at least 2 pixels); the widest is 180x130",
        ),
        ("--pictures Set2/busy.png/a", "cannot be made"),
    ],
)
def test_mistakes_are_told_before_anything_is_scored(
    photos, capsys, monkeypatch, options, sentence
):
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: pytest.fail("scored"))
    assert main(f"eval Set2 --scale 2 {options}".split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("c2d: ") and err.count("\n") == 1 and sentence in err


def test_a_missing_matplotlib_is_told(photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["eval", "Set2", "--scale", "2", "--pictures", "out"]) == 2
    err = capsys.readouterr().err
    assert err == "c2d: pictures need matplotlib; install it with: pip install matplotlib.\n"
    assert not Path("out").exists()
