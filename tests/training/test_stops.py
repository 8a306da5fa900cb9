"""Training that is stopped, killed or breaks: what is kept, what is said, and how it goes on."""

import errno
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from c2d_models import cli, files
from c2d_models.errors import ConfigError
from c2d_models.networks import checkpoint
from c2d_models.pretrained import loading
from c2d_models.training import run_folder
from c2d_models.training import trainer as training
from tests.training.short_run import write_config


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
    left, right = loading.load(unbroken).state_dict(), loading.load(resumed).state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_curves_that_cannot_be_written_do_not_end_the_run(tmp_path, photos, capsys, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    training.run(write_config(tmp_path, photos))
    said = capsys.readouterr().err
    assert said.count("no more TensorBoard curves: No space left on device") == 1
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 4


def break_at(trainer, monkeypatch, step, change):
    """`trainer` computes the loss changed by `change` at `step`."""
    forward = trainer.forward

    def broken(batch):
        loss = forward(batch)
        return change(loss) if trainer.step == step else loss

    monkeypatch.setattr(trainer, "forward", broken)


def infinite_gradient(loss):
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


@pytest.mark.parametrize(
    ("change", "value"), [(lambda loss: loss * math.nan, "nan"), (infinite_gradient, "inf|nan")]
)
def test_a_loss_or_gradient_that_is_not_finite_stops_and_keeps_the_state(
    tmp_path, photos, monkeypatch, change, value
):
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos)))
    break_at(trainer, monkeypatch, 0, change)
    before = {key: value.clone() for key, value in trainer.net.state_dict().items()}
    said = rf"a gradient became ({value}) at step 0; .* came from: .* start anew"
    with pytest.raises(ConfigError, match=said):
        trainer.run()
    state = torch.load(trainer.folder.state, weights_only=True)
    assert state["step"] == 0 and all(torch.equal(state["net"][key], before[key]) for key in before)


def test_a_broken_step_leaves_the_checkpoint_before_it(tmp_path, photos, monkeypatch):
    """From the very state that broke, a smaller learning rate would lead nowhere."""
    config = training.load_config(write_config(tmp_path, photos, steps=6))
    trainer = training.Trainer(config)
    break_at(trainer, monkeypatch, 3, infinite_gradient)
    with pytest.raises(ConfigError, match=r"at step 3; .* is of step 2: .* and resume"):
        trainer.run()
    assert torch.load(trainer.folder.state, weights_only=True)["step"] == 2
    training.train(config, resume=True)
    assert torch.load(trainer.folder.state, weights_only=True)["step"] == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path, photos, monkeypatch, capsys, number):
    """At a step that has no validation and none after it: the curve is the unbroken run's."""
    (tmp_path / "unbroken").mkdir()
    unbroken = training.run(write_config(tmp_path / "unbroken", photos, steps=8, validate_every=4))
    config = training.load_config(write_config(tmp_path, photos, steps=8, validate_every=4))
    step = training.Trainer.train_step

    def interrupted(trainer, batch):
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "train_step", interrupted)
        with pytest.raises(SystemExit) as left:
            training.train(config)
    assert left.value.code == 128 + number
    assert "stopped at step 3; continue with --resume" in capsys.readouterr().err
    state = torch.load(config.output / "state.pt", weights_only=True)
    assert state["step"] == 3 and state["losses"][0] == 3 and not state["history"]
    histories = [
        loading.read_record(path)["curve"]
        for path in (unbroken, training.train(config, resume=True))
    ]
    assert len(histories[0]) == 2 and histories[0] == histories[1]


def test_a_signal_in_the_last_step_is_too_late(tmp_path, photos, monkeypatch):
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos, steps=1)))
    step = trainer.train_step

    def interrupted(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    assert trainer.run() == 0 and len(trainer.history) == 1


def weights_alone() -> bytes:
    """A file that torch can read, but no run has written."""
    file = io.BytesIO()
    torch.save({"net": {}}, file)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04", weights_alone()])
def test_a_state_that_cannot_be_read_is_said(tmp_path, photos, content):
    config = write_config(tmp_path, photos)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot resume: .*state.pt is not the state of a"):
        training.run(config, resume=True)


def test_what_a_killed_save_left_is_removed(tmp_path, photos):
    config = write_config(tmp_path, photos, steps=2)
    training.run(config)
    killed = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    ).stdout.decode()
    mine = files.temporary(tmp_path / "run").name
    left = mine.replace(f"-{os.getpid()}-", f"-{killed.strip()}-")
    assert left != mine
    (tmp_path / "run" / left).write_bytes(b"half")
    training.run(config, resume=True)
    assert not list((tmp_path / "run").glob(".*"))


def test_a_full_disk_at_the_start_names_the_file(tmp_path, photos, monkeypatch, capsys):
    """Nothing half-written is left, and a run that is resumed keeps its old configuration."""
    config = write_config(tmp_path, photos)

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        assert cli.main(["train", str(config)]) == 2
    assert "config.yaml: No space left on device." in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_under_tensorboards_own_thread_is_one_line(
    tmp_path, photos, capsys, monkeypatch
):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hook = threading.excepthook
    monkeypatch.setattr(RecordWriter, "write", full)
    path = training.run(write_config(tmp_path, photos))
    said = capsys.readouterr().err
    assert said.count("no more TensorBoard curves: No space left on device") == 1
    assert "Traceback" not in said and f"trained: {path}" in said
    assert threading.excepthook is hook


def test_curves_that_cannot_be_opened_do_not_end_the_run(tmp_path, photos, capsys, monkeypatch):
    from torch.utils import tensorboard

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard, "SummaryWriter", full)
    path = training.run(write_config(tmp_path, photos))
    said = capsys.readouterr().err
    assert said.count("no more TensorBoard curves: No space left on device") == 1
    assert f"trained: {path}" in said


def test_an_existing_run_is_not_overwritten(tmp_path, photos):
    config = write_config(tmp_path, photos, steps=1)
    training.run(config)
    with pytest.raises(ConfigError, match="already holds a run"):
        training.run(config)
    with pytest.raises(ConfigError, match="cannot resume: seed was 0, is now 5"):
        training.run(config, ["seed=5"], resume=True)
    training.run(config, ["steps=2"], resume=True)
    with pytest.raises(ConfigError, match="the run is at step 2, past 'steps', 1"):
        training.run(config, resume=True)


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
    code += f"from c2d_models.training import trainer; trainer.run({str(config)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    step = torch.load(state, weights_only=True)["step"]
    assert 1 <= step < 12
    resumed = training.run(config, resume=True)
    for name in ("net", "average", "optimizer", "history"):
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
    assert len(trainer.batches.files) + len(trainer.data.held_out) == 6
    for file in folder.glob("wave*"):
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of .* images can be read; the first: .*png"):
        training.Trainer(training.load_config(write_config(tmp_path, folder)))


@pytest.mark.parametrize("fails", [1, 2])
def test_a_last_save_that_fails_halfway_is_made_up_for(tmp_path, photos, monkeypatch, fails):
    """The last state is never there without its weights, whichever of the two writes fails."""
    config = write_config(tmp_path, photos)
    left = [2 + fails]  # two writes at step 2; those of step 4 follow
    write = files.write_whole

    def runs_out(path, content):
        if path.name in ("state.pt", checkpoint.FILE_NAME):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    for module in (checkpoint, run_folder):
        monkeypatch.setattr(module, "write_whole", runs_out)
    with pytest.raises(ConfigError, match=r"step 4 cannot be saved .*; step 2 is still"):
        training.run(config)
    monkeypatch.undo()
    weights = training.run(config, resume=True)
    assert loading.read_record(weights)["step"] == 4
    state = torch.load(weights.parent / "state.pt", weights_only=True)
    saved = loading.load(weights).state_dict()
    for name, value in saved.items():
        torch.testing.assert_close(value, state["average"][f"module.{name}"], rtol=0, atol=0)


def test_a_full_disk_keeps_what_was_saved(tmp_path, photos, monkeypatch):
    trainer = training.Trainer(training.load_config(write_config(tmp_path, photos)))
    trainer.save()
    before = trainer.folder.state.read_bytes()

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    said = r"step 0 cannot be saved in .*: No space left on device; step 0 is still there"
    with pytest.raises(ConfigError, match=said):
        trainer.save()
    assert trainer.folder.state.read_bytes() == before
    assert sorted(path.name for path in trainer.config.output.iterdir()) == [
        "model.safetensors",
        "state.pt",
    ]
