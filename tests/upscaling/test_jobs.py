"""Folders of photographs: where outputs go, and what is refused before anything is enlarged."""

import os

import pytest
from PIL import Image

from c2d_models import create
from c2d_models.errors import UpscaleError
from c2d_models.upscaling.batch import FileOptions, Report, upscale_files
from c2d_models.upscaling.jobs import plan
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
    if output == "in/o":  # what an earlier run left is not an input
        (tree / "in/o").mkdir()
        (tree / "in/a.png").rename(tree / "in/o/old.png")
        Image.new("RGB", (5, 6)).save(tree / "in/a.png")
    jobs = plan(inputs, output, format).jobs
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
        plan(inputs, output, format)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_an_unwritable_folder_is_refused(tree):
    (tree / "locked").mkdir(mode=0o500)
    with pytest.raises(UpscaleError, match="cannot be written to"):
        plan([tree / "in"], tree / "locked" / "o")


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
    upscaler = Upscaler.load(model=create("hiet_swinir_tiny", 2))
    (outcome,) = upscale_files(plan([source], target).jobs, upscaler, FileOptions(overwrite=True))
    assert "never overwritten" in outcome.failure and outcome.written is None
    assert source.read_bytes() == before


def test_files_with_one_stem_get_names(tree):
    for name in ("a.jpg", "a.webp", "c.tif"):
        Image.new("RGB", (5, 5)).save(tree / "in" / name)
    jobs = plan([tree / "in"], tree / "o", "png").jobs
    names = {str(job.source.relative_to(tree / "in")): job.target.name for job in jobs}
    assert names == {
        "a.jpg": "a_jpg.png",
        "a.png": "a.png",
        "a.webp": "a_webp.png",
        "c.gif": "c_gif.png",
        "c.tif": "c_tif.png",
        "deep/b.jpg": "b.png",
    }
    assert not any(job.problem for job in jobs)


def test_two_inputs_for_one_output_are_refused(tree):
    for folder in ("one", "two"):
        (tree / folder).mkdir()
        Image.new("RGB", (5, 5)).save(tree / folder / "a.png")
    jobs = plan([tree / "one" / "a.png", tree / "two" / "a.png"], tree / "o").jobs
    assert jobs[0].problem is None and "like" in jobs[1].problem


def test_a_suffix_writes_beside_the_originals(tree):
    source = tree / "in"
    for _ in range(2):  # what the first run wrote is not an input of the second
        for output in (None, source):
            jobs = plan([source], output, suffix="_x4").jobs
            targets = [str(job.target.relative_to(source)) for job in jobs]
            assert targets == ["a_x4.png", "c_x4.png", "deep/b_x4.jpg"]
            assert not any(job.problem for job in jobs)
        for job in jobs:
            job.target.write_bytes(b"")
    (job,) = plan([source / "a.png"], None, "jpg", suffix="_x4").jobs
    assert job.target == source / "a_x4.jpg"


def test_what_is_not_read_is_named(tree):
    source = tree / "in"
    (source / "b.PSD").write_bytes(b"")
    (source / "deep" / "c.svg").write_bytes(b"")
    (source / ".d.svg").write_bytes(b"")
    (tree / "elsewhere").mkdir()
    (source / "linked").symlink_to(tree / "elsewhere")
    unread = plan([source], tree / "o").unread
    told = {str(path.relative_to(source)): why for path, why in unread}
    assert told == {"b.PSD": ".psd", "deep/c.svg": ".svg", "linked": "linked folder"}
    assert Report(unread=unread[1:2]).summary().endswith(f"; 1 not read: {unread[1][0]}")


def test_a_folder_of_nothing_that_is_read(tree):
    (tree / "raws").mkdir()
    for name in ("a.svg", "b.svg"):
        (tree / "raws" / name).write_bytes(b"")
    with pytest.raises(
        UpscaleError, match=r"raws holds no image that is read here \(2 .svg are not"
    ):
        plan([tree / "raws"], tree / "o")


@pytest.mark.parametrize(
    ("inputs", "output", "suffix", "sentence"),
    [
        ([""], "o", "", "a path is empty"),
        (["in"], "", "", "a path is empty"),
        (["in"], None, "", "no output is given"),
        (["in"], "o.png", "", "o.png names one picture, but the input is the folder in"),
        (
            ["in/a.png", "in/c.gif"],
            "o.png",
            "",
            "o.png names one picture, but the input is 2 files",
        ),
        (["in/a.png"], "o.png", "_x4", "the suffix _x4 applies to folders"),
        (["in"], None, "../x", "suffix is ../x"),
        (["in"], "-", "", "standard output takes one picture"),
        (["-"], "o", "", "standard input has no name"),
        (["-", "in/a.png"], "o", "", "standard input is one picture"),
    ],
    ids=str,
)
def test_requests_that_make_no_sense(tree, monkeypatch, inputs, output, suffix, sentence):
    monkeypatch.chdir(tree)
    with pytest.raises(UpscaleError, match=sentence):
        plan(inputs, output, suffix=suffix)


@pytest.mark.parametrize("format", ["jpeg", "JPG", "jpg"])
def test_other_names_of_a_format(tree, format):
    (job,) = plan([tree / "in" / "a.png"], tree / "o", format).jobs
    assert job.target.name == "a.jpg"
