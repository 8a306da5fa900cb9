"""Folders of photographs: where outputs go, and what is refused before anything is enlarged."""

import os

import pytest
from PIL import Image

from c2d_models import create
from c2d_models.errors import UpscaleError
from c2d_models.upscaling.folders import plan_jobs, upscale_files
from c2d_models.upscaling.upscaler import Upscaler


@pytest.fixture
def tree(tmp_path):
    """in/a.png, in/deep/b.jpg, in/c.gif, beside things that are no input."""
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    picture = Image.linear_gradient("L").resize((5, 6)).convert("RGB")
    picture.save(source / "a.png")
    picture.save(source / "deep" / "b.jpg")
    picture.save(source / "c.gif")
    picture.save(source / ".hidden.png")
    (source / "notes.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "output", "format", "expected"),
    [
        pytest.param(["in/a.png"], "o.webp", "same", ["o.webp"], id="file to file"),
        pytest.param(["in/a.png"], "o", "same", ["o/a.png"], id="file to folder"),
        pytest.param(["in/a.png"], "o", "jpg", ["o/a.jpg"], id="file to folder, as jpg"),
        pytest.param(
            ["in"], "o", "same", ["o/a.png", "o/c.png", "o/deep/b.jpg"], id="folder, mirrored"
        ),
        pytest.param(
            ["in"], "o", "webp", ["o/a.webp", "o/c.webp", "o/deep/b.webp"], id="folder, as webp"
        ),
        pytest.param(
            ["in"], "in/o", "same", ["in/o/a.png", "in/o/c.png", "in/o/deep/b.jpg"], id="inside"
        ),
        pytest.param(["in/deep", "in/a.png"], "o", "same", ["o/deep/b.jpg", "o/a.png"], id="both"),
        pytest.param(["in/none.png"], "o", "same", ["o/none.png"], id="missing, said later"),
    ],
)
def test_where_outputs_go(tree, monkeypatch, inputs, output, format, expected):
    monkeypatch.chdir(tree)
    if output == "in/o":  # what an earlier run left is no input
        (tree / "in/o").mkdir()
        (tree / "in/a.png").rename(tree / "in/o/old.png")
        Image.new("RGB", (5, 6)).save(tree / "in/a.png")
    jobs = plan_jobs(inputs, output, format)
    assert [str(job.target) for job in jobs] == expected
    assert not any(job.problem for job in jobs)


@pytest.mark.parametrize(
    ("inputs", "output", "format", "sentence"),
    [
        pytest.param(["in/a.png"], "o.bmp", "same", "ends in .bmp", id="unknown ending"),
        pytest.param(["in/a.png"], "o.png", "jpg", "choose one", id="contradiction"),
        pytest.param(["in/a.png"], "o.png", "bmp", "format is bmp", id="unknown format"),
        pytest.param(["in"], "in/a.png", "same", "is a file", id="folder to file"),
        pytest.param(["in"], "in/a.png/o", "same", "is a file", id="below a file"),
        pytest.param(["empty"], "o", "same", "holds no image", id="empty folder"),
    ],
)
def test_outputs_that_cannot_be(tree, monkeypatch, inputs, output, format, sentence):
    monkeypatch.chdir(tree)
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        plan_jobs(inputs, output, format)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_an_unwritable_folder_is_refused(tree):
    (tree / "locked").mkdir(mode=0o500)
    with pytest.raises(UpscaleError, match="cannot be written to"):
        plan_jobs([tree / "in"], tree / "locked" / "o")


@pytest.mark.parametrize("link", ["same path", "hard link", "symbolic link"])
def test_an_input_is_never_overwritten(tree, link):
    source, target = tree / "in" / "a.png", tree / "o.png"
    if link == "same path":
        target = source
    elif link == "hard link":
        os.link(source, target)
    else:
        target.symlink_to(source)
    before = source.read_bytes()
    (job,) = plan_jobs([source], target)
    (report,) = upscale_files(
        [job], Upscaler.load(model=create("hiet_swinir_tiny", 2)), overwrite=True
    )
    assert "never overwritten" in report.failures[0][1] and not report.written
    assert source.read_bytes() == before


def test_two_inputs_for_one_output_are_refused(tree):
    Image.new("RGB", (5, 5)).save(tree / "in" / "a.jpg")
    jobs = {job.source.name: job for job in plan_jobs([tree / "in"], tree / "o", "png")}
    assert jobs["a.jpg"].problem is None and "like" in jobs["a.png"].problem
