"""A run's files: the best weights, earlier checkpoints, and a note of changes when it goes on."""

import os

import pytest
import torch

from c2d_models import cli
from c2d_models.pretrained import loading
from c2d_models.training import run_folder
from c2d_models.training import trainer as training
from c2d_models.training.validation import Validation, mean_psnr
from tests.training.short_run import write_config


def names(folder):
    return sorted(path.name for path in folder.glob("*.*"))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_the_last_checkpoints_are_kept_on_request(tmp_path, photos, monkeypatch, links):
    if not links:

        def refuse(*arguments):
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    config = write_config(tmp_path, photos, steps=8, keep=3, checkpoint_every=2)
    training.run(config)
    run = tmp_path / "run"
    kept = [f"{kind}_{step}" for kind in ("model", "state") for step in (4, 6, 8)]
    assert {path.stem for path in run.iterdir()} >= set(kept)
    assert not list(run.glob("*_2.*"))
    for step in (4, 6, 8):
        assert torch.load(run / f"state_{step}.pt", weights_only=True)["step"] == step
        assert loading.load(run / f"model_{step}.safetensors").record["step"] == step
    assert (run / "state_8.pt").read_bytes() == (run / "state.pt").read_bytes()


def test_nothing_else_is_kept_unasked(tmp_path, photos):
    training.run(write_config(tmp_path, photos))
    assert names(tmp_path / "run") == [
        "best.safetensors",
        "config.yaml",
        "model.safetensors",
        "state.pt",
    ]


def test_the_best_weights_are_those_of_the_highest_score(tmp_path, photos, monkeypatch):
    """Also when it is not the newest, and after a resumption."""
    scores = iter([30.0, 32.0, 31.0, 31.5, 33.0])
    monkeypatch.setattr(Validation, "scores", lambda self, net: {"psnr_x2": next(scores)})
    config = write_config(tmp_path, photos, steps=8)
    best = tmp_path / "run" / run_folder.BEST
    training.run(config)
    assert loading.load(best).record["step"] == 4
    path = training.load_config(config, ["steps=10"])
    training.train(path, resume=True)
    assert loading.load(best).record["step"] == 10


def test_the_mean_is_over_the_scales():
    assert mean_psnr({"step": 2, "loss": 0.1, "psnr_x2": 36.0, "psnr_x4": 30.0}) == 33.0


def test_a_resumed_run_says_what_it_reads_instead(tmp_path, photos, capsys):
    config = write_config(tmp_path, photos, steps=2)
    training.run(config)
    (tmp_path / "other").mkdir()
    for file in photos.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    capsys.readouterr()
    other = f"data={tmp_path / 'other'}"
    training.run(config, [other, "steps=4"], resume=True)
    said = capsys.readouterr().err
    assert f"data was ['{photos}'], is now ['{tmp_path / 'other'}']" in said
    training.run(config, [other, "steps=6"], resume=True)
    assert " was " not in capsys.readouterr().err


def test_a_dry_run_tells_and_writes_nothing(tmp_path, photos, capsys):
    (photos_with_one_bad := tmp_path / "photos").mkdir()
    for file in photos.iterdir():
        (photos_with_one_bad / file.name).write_bytes(file.read_bytes())
    (photos_with_one_bad / "bad.png").write_bytes(b"no picture")
    config = write_config(tmp_path, photos_with_one_bad, steps=5000)
    assert cli.main(["train", str(config), "--dry-run"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["data"].split()[1:3] == ["images", "train"] and "held out" in told["data"]
    assert "bad.png" in told["left"]
    net = training.build_network(training.load_config(config))
    parameters = sum(value.numel() for value in net.parameters())
    assert f"{parameters:,} parameters" in told["network"] and "GMACs" in told["network"]
    assert told["steps"].endswith("(the median of 5)") and "patches a second" in told["steps"]
    assert float(told["memory"].split()[0]) > 0.05
    assert told["run"].startswith("5,000 steps: about")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_resumed_run(tmp_path, photos, capsys):
    config = write_config(tmp_path, photos)
    training.run(config)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert cli.main(["train", str(config), "--dry-run", "--resume"]) == 0
    assert "none are left of 4" in capsys.readouterr().out
    arguments = ["train", str(config), "--dry-run", "--resume", "--set", "steps=6"]
    assert cli.main(arguments) == 0
    assert "run       2 steps: about" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert after == before


def test_tensorboard_shows_held_out_crops(tmp_path, photos):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training.run(write_config(tmp_path, photos, validation_images=2))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()["images"]
    assert tags and all(tag.startswith("held out x2: bicubic, ours, original") for tag in tags)
    shown = events.Images(tags[0])
    assert [image.step for image in shown] == [2, 4]
    assert (shown[0].width, shown[0].height) == (3 * 48, 48)
