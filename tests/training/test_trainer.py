"""Training: refusals, the schedule, stage 2's start, what a run leaves behind."""

import os
import shutil
import subprocess
import sys

import pytest
import pyvips
import torch
from torch.optim.swa_utils import AveragedModel

from c2d_models.errors import ConfigError, DataError
from c2d_models.images import resize, sets
from c2d_models.networks import checkpoint, registry
from c2d_models.pretrained import loading
from c2d_models.training import trainer as training
from tests.training.short_run import write_config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stpes": 3}, "unknown key 'stpes'; did you mean 'steps'"),
        ({"stpes": 3, "steps": None}, "unknown key 'stpes'; did you mean 'steps'"),
        ({"network": None}, "the key 'network' is missing"),
        ({"lr": -1}, "lr: Input should be greater than 0, got -1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**32}, "seed: Input should be less than 4294967296"),
        ({"scale": None}, "stage 'discrete' needs 'scale'"),
        ({"stage": "continuous"}, "remove 'scale'"),
        ({"schedule": "multistep"}, "schedule 'multistep' needs 'milestones'"),
        ({"milestones": [2]}, "schedule 'cosine' has no milestones"),
        ({"schedule": "multistep", "milestones": [3, 3]}, r"increase, got \[3, 3\]"),
        ({"schedule": "multistep", "milestones": [0]}, r"must be above 0 .* got \[0\]"),
        ({"lr_data": ["a", "b"]}, "lr_data has 2 folders and data 1"),
        ({"stage": "continuous", "scale": None, "lr_data": ["a"]}, "remove 'lr_data'"),
        ({"init_upsampler": True}, "init_upsampler needs 'init'"),
    ],
    ids=[
        "unknown key",
        "unknown key for a needed one",
        "missing key",
        "bad value",
        "negative seed",
        "large seed",
        "no scale",
        "scale of a continuous stage",
        "no milestones",
        "milestones of a cosine",
        "equal milestones",
        "milestone at the start",
        "LR folders",
        "LR files of a continuous stage",
        "nothing to fine-tune",
    ],
)
def test_config_refusals(tmp_path, photos, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        training.load_config(write_config(tmp_path, photos, **changes))


def test_config_overrides_are_typed(tmp_path, photos):
    path = write_config(tmp_path, photos)
    assert training.load_config(path, ["lr=1e-3", "steps=7", "autocast=bfloat16"]).steps == 7
    assert training.load_config(path, ["lr=0.001"]).lr == 0.001
    with pytest.raises(ConfigError, match="--set takes key=value, got 'steps'"):
        training.load_config(path, ["steps"])
    with pytest.raises(ConfigError, match=r"--set lr=\[1 is not valid YAML: expected"):
        training.load_config(path, ["lr=[1"])
    with pytest.raises(ConfigError, match="--set output=2024-13-45 is not valid YAML"):
        training.load_config(path, ["output=2024-13-45"])
    with pytest.raises(ConfigError, match=r"^--set: unknown key 'stpes'; did you mean"):
        training.load_config(path, ["stpes=3"])


def test_one_folder_needs_no_list(tmp_path, photos):
    config = training.load_config(write_config(tmp_path, photos), [f"data={photos}", "lr_data=x"])
    assert config.data == [photos] and [str(folder) for folder in config.lr_data] == ["x"]


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("gpu", "use auto, cpu or cuda"),
        ("meta", "use auto, cpu or cuda"),
        ("cuda:99", "finds no such GPU"),
    ],
)
def test_a_device_that_is_not_there_is_said(tmp_path, photos, device, sentence):
    with pytest.raises(ValueError, match=sentence):
        training.run(write_config(tmp_path, photos, device=device))
    assert not (tmp_path / "run").exists()


def test_workers_make_the_same_batches(tmp_path, photos):
    states = []
    for workers in (1, 3, 9):
        config = write_config(
            tmp_path, photos, workers=workers, output=str(tmp_path / f"{workers}")
        )
        states.append(loading.load(training.run(config)).state_dict())
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read the configuration"),
        ("a: [", "not valid YAML"),
        ("output: 2024-13-45", "not valid YAML: month must be in 1..12"),
        ("- 1", "got list"),
    ],
    ids=["no file", "broken YAML", "no date", "a list"],
)
def test_config_file_refusals(tmp_path, content, sentence):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        training.load_config(path)


def test_learning_rate_warms_up_and_follows_a_cosine(tmp_path, photos):
    config = training.load_config(write_config(tmp_path, photos, steps=110, warmup=10, lr=1.0))
    rates = [training.learning_rate(config, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.01 + 0.99 / 2)  # half-way down the cosine
    assert rates[109] < 0.012 and rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_is_halved_at_milestones(tmp_path, photos):
    changes = {"schedule": "multistep", "milestones": [5, 8], "warmup": 2, "lr": 1.0}
    config = training.load_config(write_config(tmp_path, photos, steps=10, **changes))
    rates = [training.learning_rate(config, step) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_training_lowers_the_loss_and_writes_its_record(tmp_path, photos):
    path = training.run(write_config(tmp_path, photos, steps=30, validate_every=10, lr=2e-3))
    record = loading.read_record(path)
    curve = record["curve"]
    assert [entry["step"] for entry in curve] == [10, 20, 30]
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert curve[-1]["psnr_x2"] > 15
    assert record["config"]["network"] == "hiet_swinir_tiny" and record["training_images"] > 0


def test_stage_two_takes_the_body_and_leaves_the_upsampler_fresh(tmp_path, photos):
    first = training.run(write_config(tmp_path, photos, stage="continuous", scale=None, queries=64))
    config = write_config(tmp_path, photos, init=str(first), output=str(tmp_path / "second"))
    net = training.build_network(training.load_config(config))
    source = loading.load(first).state_dict()
    body = [key for key in net.state_dict() if not key.startswith("upsample.")]
    assert len(body) > 20 and all(torch.equal(net.state_dict()[key], source[key]) for key in body)
    assert any(key.startswith("upsample.") for key in net.state_dict())
    second = training.run(config, ["steps=1"])
    assert loading.read_record(second)["init"] == "run"  # the folder of model.safetensors


def test_fine_tuning_takes_an_authors_whole_file(tmp_path, photos):
    torch.manual_seed(3)
    author = registry.create("swinir_l", 4)
    torch.save({"params": author.state_dict()}, tmp_path / "author.pth")
    changes = {"network": "swinir_l", "scale": 4, "steps": 1, "batch": 1, "lr": 1e-6}
    changes |= {"init": str(tmp_path / "author.pth"), "init_upsampler": True}
    config = write_config(tmp_path, photos, **changes)
    net = training.build_network(training.load_config(config))
    for key, value in author.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    tuned = loading.load(training.run(config)).state_dict()
    steps = [(tuned[key] - value).abs().max().item() for key, value in net.named_parameters()]
    assert 0 < max(steps) < 2e-6
    fresh = training.build_network(training.load_config(config, ["init_upsampler=false"]))
    assert not torch.equal(fresh.upsample[0].weight, author.upsample[0].weight)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale": 4}, "is x2, but this run x4; without init_upsampler"),
        (
            {"scale": None, "stage": "continuous", "queries": 64},
            "is x2, but this run continuous; without init_upsampler",
        ),
        ({"options": {"dim": 16}}, "does not fit 'hiet_swinir_tiny'; the first weight that"),
    ],
    ids=["another scale", "another stage", "other options"],
)
def test_fine_tuning_refuses_what_does_not_fit(tmp_path, photos, changes, sentence):
    file = tmp_path / "x2.safetensors"
    checkpoint.save(registry.create("hiet_swinir_tiny", 2), file)
    config = write_config(tmp_path, photos, init=str(file), init_upsampler=True, **changes)
    with pytest.raises(ConfigError, match=sentence):
        training.build_network(training.load_config(config))


def test_training_on_pairs_scores_their_own_lr_files(tmp_path, photos):
    """Held-out LR crops are cut out of the LR files, which are darker than a reduction."""
    for file in photos.iterdir():
        lr, _ = resize.lr_pair(sets.read_rgb(file), 2)
        image = pyvips.Image.new_from_array((lr // 2).permute(1, 2, 0).numpy())
        (tmp_path / "X2").mkdir(exist_ok=True)
        image.write_to_file(str(tmp_path / "X2" / f"{file.stem}x2.png"))
    config = write_config(tmp_path, photos, steps=1, lr_data=[str(tmp_path)], validation_crop=49)
    trainer = training.Trainer(training.load_config(config))
    ((lr, hr),) = trainer.data.validation[2]
    assert lr.shape == (3, 24, 24) and hr.shape == (3, 48, 48)
    whole = sets.read_rgb(trainer.data.held_out[0])
    reduced = resize.lr_pair(whole, 2)[0] // 2
    assert torch.equal(lr, reduced[:, 16:40, 18:42])
    assert torch.equal(hr, whole[:, 32:80, 36:84])
    trainer.run()
    record = loading.read_record(tmp_path / "run" / "model.safetensors")
    assert record["lr_data"] == [tmp_path.name] and record["processes"] == 1


def test_a_small_held_out_photo_is_named(tmp_path, photos):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    _, held_out = sets.split(sorted(folder.iterdir()))
    pyvips.Image.black(10, 60, bands=3).write_to_file(str(held_out[0]))
    said = f"{held_out[0].name} is 10x60; a held-out photograph needs at least 24x24: remove it"
    with pytest.raises(DataError, match=said):
        training.run(write_config(tmp_path, folder))


def curves(folder):
    """TensorBoard's scalars of a run: {name: [(step, value), ...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_curves_and_no_step_twice(tmp_path, photos):
    changes = {"steps": 30, "validate_every": 10, "checkpoint_every": 20}
    config = write_config(tmp_path, photos, **changes)
    state = tmp_path / "run" / "state.pt"

    trainer = training.Trainer(training.load_config(config))
    step = trainer.train_step

    def copying(batch):
        if trainer.step == 20:
            shutil.copy(state, tmp_path / "state.pt")  # the last state that is kept
        return step(batch)

    trainer.train_step = copying
    trainer.run()  # to step 30, which is lost
    os.replace(tmp_path / "state.pt", state)
    training.run(config, ["lr=1e-5"], resume=True)
    found = curves(tmp_path / "run")
    assert found.keys() == {"loss", "lr", "steps/s", "validation/psnr_x2"}
    assert all([step for step, _ in points] == [10, 20, 30] for points in found.values())
    rates = dict(found["lr"])
    resumed = training.load_config(config, ["lr=1e-5"])
    assert rates[30] == pytest.approx(training.learning_rate(resumed, 29))
    assert rates[20] == pytest.approx(training.learning_rate(trainer.config, 19))
    record = loading.read_record(tmp_path / "run" / "model.safetensors")
    scores = [entry["psnr_x2"] for entry in record["curve"]]
    assert [value for _, value in found["validation/psnr_x2"]] == pytest.approx(scores, abs=1e-3)


def test_without_tensorboard_one_line_says_so(tmp_path, photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    training.run(write_config(tmp_path, photos, steps=1))
    assert capsys.readouterr().err.count("pip install tensorboard") == 1
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_init_refuses_another_network(tmp_path, photos):
    first = training.run(write_config(tmp_path, photos, network="swinir_l_tiny", steps=1))
    config = write_config(tmp_path, photos, init=str(first))
    with pytest.raises(
        ConfigError, match="holds 'swinir_l_tiny', but network is 'hiet_swinir_tiny'"
    ):
        training.build_network(training.load_config(config))


def test_options_reach_the_network_and_are_checked(tmp_path, photos):
    path = write_config(tmp_path, photos, options={"bottom_mixer": "correlation"}, steps=1)
    net = loading.load(training.run(path))
    assert net.config["bottom_mixer"] == "correlation"
    with pytest.raises(ConfigError, match="cannot resume: options was"):
        training.run(write_config(tmp_path, photos), resume=True)
    with pytest.raises(ConfigError, match=r"options: .* unexpected keyword.* 'botom'"):
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


def test_a_configuration_is_utf_8_whatever_the_locale(tmp_path, photos):
    config = write_config(tmp_path, photos, licences=["Müller"])
    config.write_bytes(config.read_text(encoding="utf-8").replace("M\\xFCller", "Müller").encode())
    assert "Müller".encode() in config.read_bytes()
    script = "import sys; from c2d_models.training.config import load_config as load; "
    script += "sys.exit(load(sys.argv[1]).licences != ['M\\xfcller'])"
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script, str(config)], env=environment)
    assert done.returncode == 0


def test_autocast_begins_late(tmp_path, photos, monkeypatch):
    """The steps near the start, whose gradients bfloat16 would round away, are float32."""
    changes = {"autocast": "bfloat16", "autocast_from": 3, "steps": 5}
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos, **changes)))
    forward, rounds = trainer.forward, []

    def watched(batch):
        rounds.append(torch.is_autocast_enabled("cpu"))
        return forward(batch)

    monkeypatch.setattr(trainer, "forward", watched)
    trainer.run()
    assert rounds == [False] * 3 + [True] * 2
    assert training.load_config(write_config(tmp_path, photos)).autocast_from == 600
