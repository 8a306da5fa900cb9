"""Evaluation of folders: which images are compared, with which scores, and what is refused."""

import csv
import errno
import io
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from c2d_models import cli, create
from c2d_models.errors import DataError, EvaluationError
from c2d_models.evaluation import results as scores
from c2d_models.evaluation import run as evaluation
from c2d_models.evaluation import scoring
from c2d_models.evaluation.run import run
from c2d_models.evaluation.scoring import evaluate
from c2d_models.images.metrics import psnr_liif, psnr_y, ssim_y
from c2d_models.images.resize import imresize, lr_pair
from c2d_models.images.sets import read_rgb
from c2d_models.networks import checkpoint, complexity
from c2d_models.pretrained import loading


def picture(height, width, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / a) * np.cos(y / b) for a, b in ((3, 5), (7, 4), (5, 9))]
    pixels = np.stack(waves, -1) + rng.normal(0, 10, (height, width, 3))
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).write_to_file(str(path))
    return path


def write_lr(path, image):
    return write(path, image.permute(1, 2, 0).numpy())


@pytest.fixture
def photos(tmp_path):
    """A folder of two HR images and nothing else."""
    for seed, (name, size) in enumerate({"a": (50, 67), "b": (48, 52)}.items()):
        write(tmp_path / "photos" / f"{name}.png", picture(*size, seed))
    return tmp_path / "photos"


@pytest.fixture
def testset(photos, tmp_path):
    """The same as a benchmark set with LR files for x2 and x4, which are marked by one pixel."""
    root = tmp_path / "Set2"
    for file in photos.iterdir():
        hr = read_rgb(file)
        write_lr(root / "HR" / file.name, hr)
        for scale in (2, 4):
            lr, _ = lr_pair(hr, scale)
            lr[:, 0, 0] = 77
            write_lr(root / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png", lr)
    return root


class Nearest(nn.Module):
    """Enlarges by repeating pixels; discrete at `scale`, or continuous where that is None."""

    name = "nearest"

    def __init__(self, scale, change=None):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(5))
        self.change = change or (lambda y: y)

    def forward(self, x, size=None):
        assert x.dtype == torch.float32 and x.ndim == 4 and (x.is_meta or x.max() <= 1.0)
        assert (size is None) == (self.scale is not None)
        return self.change(F.interpolate(x, size, None if size else self.scale, mode="nearest"))


@pytest.mark.parametrize(("scale", "border"), [(2, 2), (3, 3), (4, 4), (2.5, 3), (1.3, 2)])
def test_bicubic_on_a_folder_without_lr_files(photos, scale, border):
    result = evaluate(None, photos, scale)
    assert (result.model, result.dataset, result.params) == ("bicubic", "photos", 0)
    assert (result.lr, result.border) == ("imresize", border)
    assert [image.name for image in result.images] == ["a", "b"]
    for image in result.images:
        lr, hr = lr_pair(read_rgb(photos / f"{image.name}.png"), scale)
        sr = imresize(lr, size=hr.shape[-2:])
        assert image.psnr_y == psnr_y(sr, hr, border)
        assert image.ssim_y == ssim_y(sr, hr, border)
    assert result.psnr_y == sum(image.psnr_y for image in result.images) / 2
    assert result.ssim_y == sum(image.ssim_y for image in result.images) / 2


@pytest.mark.parametrize("net_scale", [4, None], ids=["discrete", "continuous"])
@pytest.mark.parametrize("where", ["set", "HR", "lr_folder", "lr_subfolder"])
def test_lr_files_are_found_and_used(testset, net_scale, where):
    lr_folder = testset / "LR_bicubic"
    arguments = {
        "set": (testset, 4),
        "HR": (testset / "HR", 4),
        "lr_folder": (sorted((testset / "HR").iterdir()), 4, lr_folder),
        "lr_subfolder": (testset / "HR", 4, lr_folder / "X4"),
    }[where]
    result = evaluate(Nearest(net_scale), *arguments)
    assert (result.lr, result.model, result.params) == ("files", "nearest", 5)
    assert result.dataset == ("images" if where == "lr_folder" else "Set2")
    for image in result.images:
        lr = read_rgb(lr_folder / "X4" / f"{image.name}x4.png")
        assert (lr[:, 0, 0] == 77).all()
        sr = lr.repeat_interleave(4, -1).repeat_interleave(4, -2)
        hr = read_rgb(testset / "HR" / f"{image.name}.png")
        hr = hr[:, : sr.shape[-2], : sr.shape[-1]]
        assert image.psnr_y == psnr_y(sr, hr, 4)


def test_a_set_without_lr_files_at_a_scale_is_reduced(testset, photos):
    for scale in (3, 2.5):
        made, expected = evaluate(None, testset, scale), evaluate(None, photos, scale)
        assert made.lr == "imresize"
        assert [i.psnr_y for i in made.images] == [i.psnr_y for i in expected.images]


def test_continuous_networks_are_asked_for_the_size(photos):
    result = evaluate(Nearest(None), photos, 2.7)
    lr, hr = lr_pair(read_rgb(photos / "a.png"), 2.7)
    assert hr.shape == (3, 49, 65)
    sr = F.interpolate(lr[None] / 255, (49, 65), mode="nearest")[0]
    assert result.images[0].psnr_y == psnr_y(sr, hr, 3)


@pytest.mark.parametrize("net_scale", [2, None], ids=["discrete", "continuous"])
def test_ensemble_is_the_mean_of_eight(photos, net_scale):
    plain = evaluate(Nearest(net_scale), photos, 2)
    same = evaluate(Nearest(net_scale), photos, 2, ensemble=True)
    assert same.ensemble and not plain.ensemble
    for one, eight in zip(plain.images, same.images, strict=True):
        assert eight.psnr_y == pytest.approx(one.psnr_y, abs=1e-6)
    # A network that brightens the left edge brightens each edge by a quarter of it.
    edge = torch.zeros(1, 1, 1, 400)
    edge[..., 0] = 0.4

    def left(y):
        return y * 0 + edge[..., : y.shape[-1]]

    net = Nearest(net_scale, left)
    with torch.no_grad():
        sr = scoring.enlarge(net, torch.zeros(3, 5, 7, dtype=torch.uint8), (10, 14), True)
    expected = torch.zeros(3, 10, 14)
    for inside in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        expected[inside] += 0.1
    torch.testing.assert_close(sr, expected)


def remove_lr(root):
    (root / "LR_bicubic" / "X4" / "ax4.png").unlink()


def swap_lr(root):
    write(root / "LR_bicubic" / "X4" / "ax4.png", picture(25, 33, 0))


def tiny_hr(root):
    (root / "HR" / "a.png").unlink()
    write(root / "HR" / "a.png", picture(3, 40, 0))


FOLDER_REFUSALS = [
    pytest.param(None, "nowhere", 4, "nowhere does not exist; give a folder", id="missing"),
    pytest.param(lambda root: (root / "e").mkdir(), "e", 4, "e holds no image", id="empty"),
    pytest.param(remove_lr, ".", 4, "holds no ax4.png, the LR file of", id="lr-missing"),
    pytest.param(swap_lr, ".", 4, "is 33x25 and .*67x50; at scale 4 they", id="lr-of-x2"),
    pytest.param(tiny_hr, ".", 2.5, "a.png cannot be scored: border is 3", id="too-small"),
    pytest.param(tiny_hr, ".", 3.5, "a.png cannot be reduced: scale is 3.5", id="smaller"),
]


@pytest.mark.parametrize(("spoil", "folder", "scale", "sentence"), FOLDER_REFUSALS)
def test_folders_that_cannot_be_scored(testset, spoil, folder, scale, sentence):
    if spoil:
        spoil(testset)
    with pytest.raises(DataError, match=sentence):
        evaluate(None, testset / folder, scale)


@pytest.mark.parametrize("where", ["HR/a.png", "LR_bicubic/X4/ax4.png"])
def test_an_image_that_cannot_be_read_is_left_out_and_named(testset, tmp_path, where):
    whole = evaluate(None, testset, 4)
    (testset / where).write_bytes((testset / where).read_bytes()[:100])
    (result,) = run([], [testset], scales=[4], output=tmp_path / "a.md", console=(to := silent()))
    assert [image.name for image in result.images] == [
        i.name for i in whole.images if i.name != "a"
    ]
    assert result.images[0].psnr_y == whole.images[1].psnr_y
    (sentence,) = result.left_out
    assert Path(where).name in sentence and "damaged" in sentence
    assert f"left out: {sentence}" in to.file.getvalue()
    assert "| Set2 (1 of 2 images) |" in (tmp_path / "a.md").read_text()
    with pytest.raises(EvaluationError, match="1 of 2 images"):
        scores.keep([result], tmp_path / "weights.safetensors")
    for file in (testset / "HR").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no image of Set2 can be read; the first: "):
        evaluate(None, testset, 4)


def test_missing_lr_folder(photos):
    with pytest.raises(DataError, match="lr does not exist; give the folder of LR images"):
        evaluate(None, photos, 2, photos / "lr")


NET_REFUSALS = [
    pytest.param(Nearest(4), 2, ValueError, "nearest enlarges by 4 only, not by 2", id="scale"),
    pytest.param(Nearest(None), 0.5, ValueError, "scale is 0.5; give a number of", id="below-1"),
    pytest.param(Nearest(2, lambda y: y[..., 1:]), 2, DataError, "made an image", id="size"),
    pytest.param(Nearest(2, lambda y: y / 0), 2, DataError, "not finite; expected", id="nan"),
]


@pytest.mark.parametrize(("net", "scale", "error", "sentence"), NET_REFUSALS)
def test_networks_that_cannot_be_scored(photos, net, scale, error, sentence):
    with pytest.raises(error, match=sentence):
        evaluate(net, photos, scale)


# run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, scale in (("x4", 4), ("any", None)):
        checkpoint.save(create("hiet_swinir_tiny", scale), folder / f"{name}.safetensors")
    return folder


def silent():
    return Console(file=io.StringIO(), width=160)


def test_run_scores_models_and_writes_everything(testset, models, tmp_path):
    names = [str(models / "x4.safetensors"), str(models / "any.safetensors")]
    console = silent()
    results = run(names, [testset], output=tmp_path / "scores", device="cpu", console=console)
    assert [(r.model, r.scale, r.lr) for r in results] == [
        (name, 4.0, "files") for name in ["bicubic", *names]
    ]
    for result in results[1:]:  # new networks start at bilinear interpolation
        for image in result.images:
            lr = read_rgb(testset / "LR_bicubic" / "X4" / f"{image.name}x4.png")
            sr = F.interpolate(lr[None] / 255, scale_factor=4, mode="bilinear")[0]
            hr = read_rgb(testset / "HR" / f"{image.name}.png")
            hr = hr[:, : sr.shape[-2], : sr.shape[-1]]
            assert image.psnr_y == pytest.approx(psnr_y(sr, hr, 4), abs=0.05)
    records = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert [record["psnr_y"] for record in records] == [r.psnr_y for r in results]
    assert records[1]["images"][1]["ssim_y"] == results[1].images[1].ssim_y
    gmacs = complexity.gmacs(loading.load(names[0]))
    assert [record["gmacs"] for record in records[:2]] == [0.0, gmacs]
    assert {record["rule"] for record in records} == {"papers"}
    with open(tmp_path / "scores" / "evaluation.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert (rows[5]["model"], rows[5]["image"]) == (names[1], "b")
    assert float(rows[5]["psnr_y"]) == results[2].images[1].psnr_y
    assert float(rows[3]["gmacs"]) == gmacs and int(rows[3]["params"]) == results[1].params
    lines = (tmp_path / "scores" / "evaluation.md").read_text().splitlines()
    assert lines[0] == "PSNR-Y (dB) by the rule papers, SSIM-Y, means over the images"
    assert len(lines) == 7
    cells = [cell.strip() for cell in lines[5].strip("|").split("|")]
    gain = results[1].psnr_y - results[0].psnr_y
    assert cells[:3] == ["Set2", "x4", names[0]]
    scores = [f"{results[1].psnr_y:.2f}", f"{gain:+.2f}", f"{results[1].ssim_y:.4f}"]
    assert cells[3:8] == [f"{results[1].params:,}", f"{gmacs:.2f}", *scores]
    printed = console.file.getvalue()
    assert f"{results[0].psnr_y:.2f}" in printed and f"{gain:+.2f}" in printed
    assert f"{gmacs:.2f}" in printed and "by the rule papers" in printed


@pytest.mark.parametrize("scale", [2, 2.5])
def test_the_liif_rule_reaches_every_number(photos, tmp_path, scale):
    console, file = silent(), tmp_path / "scores.json"
    result = run(
        [], [photos], scales=[scale], output=file, device="cpu", console=console, rule="liif"
    )[0]
    for image in result.images:
        lr, hr = lr_pair(read_rgb(photos / f"{image.name}.png"), scale)
        assert image.psnr_y == psnr_liif(imresize(lr, size=hr.shape[-2:]), hr, math.ceil(scale))
    assert json.loads(file.read_text())[0]["rule"] == "liif"
    assert "by the rule liif" in console.file.getvalue()


@pytest.mark.parametrize(
    ("scale", "ensemble", "factor"), [(2, False, 1), (2, True, 8), (2.5, False, 1)]
)
def test_gmacs_are_of_the_scale_and_of_the_ensemble(photos, scale, ensemble, factor):
    net = create("hiet_swinir_tiny", None).eval()
    result = evaluate(net, photos, scale, ensemble=ensemble)
    assert result.gmacs == factor * complexity.gmacs(net, scale=scale)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        pytest.param(None, [2, 3, 4], id="default"),
        pytest.param([2.5, 1.5], [2.5, 1.5], id="given"),
    ],
)
def test_run_bicubic_alone(photos, scales, expected):
    results = run([], [photos], scales=scales, device="cpu", console=silent())
    assert [(r.model, r.scale) for r in results] == [("bicubic", scale) for scale in expected]


def test_run_takes_the_name_of_one_file(photos, tmp_path):
    run([], [photos], scales=[1], output=tmp_path / "new" / "a.json", console=silent())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.json"]
    record = json.loads((tmp_path / "new" / "a.json").read_text())[0]
    assert record["psnr_y"] is None  # infinite: at scale 1 nothing is lost
    assert record["ssim_y"] == pytest.approx(1.0) and math.isfinite(record["seconds"])


def test_a_full_disk_names_the_file_and_leaves_no_part(photos, tmp_path, monkeypatch, capsys):
    def no_room(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    for options in (["--output", "table.md"], ["--pictures", "drawn"]):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["eval", str(photos), "--scale", "2", *options]) == 2
        out, err = capsys.readouterr()
        assert "bicubic" in out and err.count("\n") == 1
        assert err.endswith("table.md: No space left on device.\n") or err.endswith(
            "drawn/crops.png: No space left on device.\n"
        )
    assert not list(tmp_path.glob("*.md")) and not list((tmp_path / "drawn").iterdir())


def test_the_first_run_of_a_network_is_not_timed(photos):
    calls = []

    def slow_at_first(y):
        if not y.is_meta:
            calls.append(y.shape)
            time.sleep(0.5 if len(calls) == 1 else 0)
        return y

    result = evaluate(Nearest(2, slow_at_first), photos, 2)
    assert len(calls) == 3 and max(image.seconds for image in result.images) < 0.4


def test_the_table_shows_long_names_whole_in_80_columns():
    image = scores.ImageScore("a", 30.0, 0.9, 12.3)
    common = {"scale": 2.7, "rule": "papers", "border": 3, "lr": "files", "device": "cpu"}
    common |= {"dataset": "Set14", "images": (image,), "ensemble": False}
    name = "hiet_swinir_tiny_continuous"
    results = [
        scores.Result(model="bicubic", params=0, gmacs=0.0, **common),
        scores.Result(model=name, params=136_027, gmacs=29.43, **common),
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(scores.to_table(results))
    line = console.file.getvalue().rstrip().splitlines()[-1]
    assert line.split() == f"Set14 x2.7 {name} 136,027 29.43 30.00 +0.00 0.9000 12.30".split()


RUN_REFUSALS = [
    pytest.param({"folders": []}, "no image folder is given", id="no-folder"),
    pytest.param({"scales": [2]}, "x4.safetensors enlarges by 4 only, not by 2", id="scale"),
    pytest.param({"scales": [0.5]}, "scale is 0.5; give a number of at least 1", id="small"),
    pytest.param({"rule": "psnr"}, "rule is psnr; give one of: papers, liif", id="rule"),
    pytest.param({"folders": ["photos", "fotos"]}, "folder fotos does not exist", id="folder"),
    pytest.param({"output": "a.txt"}, "output is .*a.txt; give a file ending in", id="output"),
    pytest.param({"output": "file/a.md"}, "output folder .*file cannot be made", id="unwritable"),
]


@pytest.mark.parametrize(("arguments", "sentence"), RUN_REFUSALS)
def test_run_refuses_before_it_scores(photos, models, tmp_path, arguments, sentence, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: pytest.fail("an image was read"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if "output" in arguments:
        arguments = {"output": tmp_path / arguments["output"]}
    call = {"models": [models / "x4.safetensors"], "folders": [photos], "console": silent()}
    with pytest.raises(ValueError, match=sentence):
        run(**{**call, **arguments})
