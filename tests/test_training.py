"""Training: refusals, the schedule, exact resume, stage 2's start, what a run leaves behind."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import pyvips
import torch
import yaml
from torch.optim.swa_utils import AveragedModel

from c2d_models import checkpoints, training


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six small synthetic photographs: smooth colour waves with edges."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:112, 0:120] / 16.0
    for index in range(6):
        waves = [
            np.sin(x * (1 + index / 3) + channel) + np.sign(np.sin(y + index))
            for channel in range(3)
        ]
        pixels = np.clip(np.stack(waves, -1) * 60 + 128, 0, 255).astype(np.uint8)
        pyvips.Image.new_from_array(pixels).write_to_file(str(folder / f"wave{index}.png"))
    return folder


def write_config(folder, photos, **changes):
    values = {
        "network": "hiet_swinir_tiny",
        "stage": "discrete",
        "scale": 2,
        "data": [str(photos)],
        "output": str(folder / "run"),
        "steps": 4,
        "batch": 2,
        "patch": 16,
        "validate_every": 2,
        "checkpoint_every": 2,
        "validation_images": 1,
        "validation_crop": 48,
        "warmup": 2,
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in values.items() if value is not None})
    )
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stpes": 3}, "unknown key 'stpes'; did you mean 'steps'"),
        ({"network": None}, "the key 'network' is missing"),
        ({"lr": -1}, "lr: Input should be greater than 0, got -1"),
        ({"scale": None}, "stage 'discrete' needs 'scale'"),
        ({"stage": "continuous"}, "remove 'scale'"),
    ],
    ids=["unknown key", "missing key", "bad value", "no scale", "scale of a continuous stage"],
)
def test_config_refusals(tmp_path, photos, changes, sentence):
    with pytest.raises(training.ConfigError, match=sentence):
        training.load_config(write_config(tmp_path, photos, **changes))


def test_config_overrides_are_typed(tmp_path, photos):
    path = write_config(tmp_path, photos)
    assert training.load_config(path, ["lr=1e-3", "steps=7", "autocast=bfloat16"]).steps == 7
    assert training.load_config(path, ["lr=0.001"]).lr == 0.001
    with pytest.raises(training.ConfigError, match="--set takes key=value, got 'steps'"):
        training.load_config(path, ["steps"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot read the configuration"), ("a: [", "not valid YAML"), ("- 1", "got list")],
    ids=["no file", "broken YAML", "a list"],
)
def test_config_file_refusals(tmp_path, content, sentence):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(training.ConfigError, match=sentence):
        training.load_config(path)


def test_learning_rate_warms_up_and_follows_a_cosine(tmp_path, photos):
    config = training.load_config(write_config(tmp_path, photos, steps=110, warmup=10, lr=1.0))
    rates = [training.learning_rate(config, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.01 + 0.99 / 2)  # half-way down the cosine
    assert rates[109] < 0.012 and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("stage", ["continuous", "discrete"])
def test_a_resumed_run_equals_the_unbroken_one_bitwise(tmp_path, photos, stage):
    changes = {"stage": stage}
    if stage == "continuous":
        changes |= {"scale": None, "queries": 64}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unbroken = training.run(write_config(tmp_path / "a", photos, **changes))
    config = write_config(tmp_path / "b", photos, **changes)
    trainer = training.Trainer(training.load_config(config))
    for step in range(2):  # stops without a word after two steps, as a killed run would
        trainer.train_step(trainer.batches.batch(step))
    trainer.save()
    resumed = training.run(config, resume=True)
    left, right = checkpoints.load(unbroken).state_dict(), checkpoints.load(resumed).state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_training_lowers_the_loss_and_writes_its_record(tmp_path, photos):
    path = training.run(write_config(tmp_path, photos, steps=30, validate_every=10, lr=2e-3))
    record = checkpoints.read_record(path)
    curve = record["curve"]
    assert [entry["step"] for entry in curve] == [10, 20, 30]
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert curve[-1]["psnr_x2"] > 15
    assert record["config"]["network"] == "hiet_swinir_tiny" and record["training_images"] > 0


def test_stage_two_takes_the_body_and_leaves_the_upsampler_fresh(tmp_path, photos):
    first = training.run(write_config(tmp_path, photos, stage="continuous", scale=None, queries=64))
    config = write_config(tmp_path, photos, init=str(first), output=str(tmp_path / "second"))
    net = training.build_network(training.load_config(config))
    source = checkpoints.load(first).state_dict()
    body = [key for key in net.state_dict() if not key.startswith("upsample.")]
    assert len(body) > 20 and all(torch.equal(net.state_dict()[key], source[key]) for key in body)
    assert any(key.startswith("upsample.") for key in net.state_dict())


def test_init_refuses_another_network(tmp_path, photos):
    first = training.run(write_config(tmp_path, photos, network="swinir_l_tiny", steps=1))
    config = write_config(tmp_path, photos, init=str(first))
    with pytest.raises(
        training.ConfigError, match="holds 'swinir_l_tiny', but network is 'hiet_swinir_tiny'"
    ):
        training.build_network(training.load_config(config))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(tmp_path, photos, monkeypatch):
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos)))
    monkeypatch.setattr(trainer, "forward", lambda batch: trainer._loss(batch) * math.nan)
    before = {key: value.clone() for key, value in trainer.net.state_dict().items()}
    with pytest.raises(training.ConfigError, match="the loss became nan at step 0"):
        trainer.run()
    state = torch.load(trainer.state_path, weights_only=True)
    assert state["step"] == 0 and all(torch.equal(state["net"][key], before[key]) for key in before)


def test_a_signal_saves_and_leaves(tmp_path, photos, monkeypatch):
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos, steps=50)))
    step = trainer.train_step

    def interrupted(batch):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    trainer.run()
    assert torch.load(trainer.state_path, weights_only=True)["step"] == 3


def test_an_existing_run_is_not_overwritten(tmp_path, photos):
    config = write_config(tmp_path, photos, steps=1)
    training.run(config)
    with pytest.raises(training.ConfigError, match="already holds a run"):
        training.run(config)
    with pytest.raises(training.ConfigError, match="cannot resume: seed was 0, is now 5"):
        training.run(config, ["seed=5"], resume=True)


def test_options_reach_the_network_and_are_checked(tmp_path, photos):
    path = write_config(tmp_path, photos, options={"bottom_mixer": "correlation"}, steps=1)
    net = checkpoints.load(training.run(path))
    assert net.config["bottom_mixer"] == "correlation"
    with pytest.raises(training.ConfigError, match="cannot resume: options was"):
        training.run(write_config(tmp_path, photos), resume=True)
    with pytest.raises(training.ConfigError, match=r"options: .* unexpected keyword.* 'botom'"):
        training.run(path, ["options={botom: 8}", f"output={tmp_path / 'other'}"])


def test_average_forgets_the_fresh_weights():
    """Updated with ones from then on, a weight that began at 5 is 1 + 4 prod(keep)."""
    weight = torch.nn.Linear(1, 1, bias=False).double()
    average = AveragedModel(weight, multi_avg_fn=training.warmed_average(0.9))
    torch.nn.init.constant_(weight.weight, 5.0)
    average.update_parameters(weight)
    torch.nn.init.constant_(weight.weight, 1.0)
    left = 4.0
    for n in range(1, 200):
        average.update_parameters(weight)
        left *= min(0.9, (1 + n) / (10 + n))
        assert average.module.weight.item() == pytest.approx(1 + left, rel=1e-12)
    assert left < 1e-8


@pytest.mark.parametrize("stage", ["continuous", "discrete"])
def test_a_killed_run_resumes_bitwise(tmp_path, photos, stage):
    """kill -9 at any time after the first checkpoint, then --resume: as if nothing had been."""
    changes = {"stage": stage, "steps": 12, "checkpoint_every": 1, "validate_every": 6}
    if stage == "continuous":
        changes |= {"scale": None, "queries": 64}
    for folder in ("unbroken", "killed"):
        (tmp_path / folder).mkdir()
    unbroken = training.run(write_config(tmp_path / "unbroken", photos, **changes))
    config = write_config(tmp_path / "killed", photos, **changes)
    state = tmp_path / "killed" / "run" / "state.pt"
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    code += f"from c2d_models import training; training.run({str(config)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    step = torch.load(state, weights_only=True)["step"]
    assert 1 <= step < 12
    resumed = training.run(config, resume=True)
    for name in ("net", "average", "optimizer"):
        left, right = (
            torch.load(path.parent / "state.pt", weights_only=True)[name]
            for path in (unbroken, resumed)
        )
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_broken_images_are_left_out_and_named(tmp_path, photos, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "wave3_1.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    trainer = training.Trainer(training.load_config(write_config(tmp_path, folder)))
    trainer.run()
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 7 images are left out" in said and "wave3_1.png" in said
    assert len(trainer.batches.files) + len(trainer.held_out) == 6
    for file in folder.glob("wave*"):
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of .* images can be read; the first: .*png"):
        training.Trainer(training.load_config(write_config(tmp_path, folder)))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("disk")])
def test_a_full_disk_keeps_what_was_saved(tmp_path, photos, monkeypatch, error):
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos)))
    trainer.save()
    before = trainer.state_path.read_bytes()
    save = torch.save

    def half(state, path):
        save({}, path)
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(training.ConfigError, match=r"step 0 cannot be saved in .*: (No sp|disk)"):
        trainer.save()
    assert trainer.state_path.read_bytes() == before
    assert sorted(path.name for path in trainer.config.output.iterdir()) == [
        "model.safetensors",
        "state.pt",
    ]
