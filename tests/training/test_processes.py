"""Several processes under torchrun make the steps of one process with all their samples."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from c2d_models.errors import ConfigError
from c2d_models.training import processes
from c2d_models.training import trainer as training
from c2d_models.training.processes import Processes
from tests.training.short_run import write_config

STEPS = """
import sys
import torch
from c2d_models.training import processes
from c2d_models.training import trainer as training

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
config = training.load_config(sys.argv[1])
with processes.join(config.device) as group:
    trainer = training.Trainer(config, group)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a fresh up-sampler is zero: the body would have no gradients
        for weight in trainer.net.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    seen = []
    for step in range(10):
        batch = trainer.batches.batch(step, group.rank)
        seen.append(trainer.train_step({key: value.double() for key, value in batch.items()}))
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in trainer.net.named_parameters()}
    result = {"gradients": gradients, "net": trainer.net.state_dict(), "losses": seen,
              "average": trainer.average.state_dict(), "count": group.count}
    torch.save(result, f"{sys.argv[2]}.{group.rank}")
"""

RUN = """
import os
import signal
import sys
import torch
from c2d_models import cli
from c2d_models.training import trainer as training

torch.set_num_threads(1)
step = training.Trainer.train_step
rank = int(os.environ.get("RANK", "0"))
event, who, when = sys.argv[2:5]

def wrapped(trainer, batch):
    if rank == int(who) and trainer.step == int(when):
        if event == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif event == "nan":
            batch = {key: value * float("nan") for key, value in batch.items()}
    return step(trainer, batch)

training.Trainer.train_step = wrapped
sys.exit(cli.main(["train", sys.argv[1], *sys.argv[5:]]))
"""


def launch(script, *arguments, count=2, **options):
    """Start `script` in `count` processes by torchrun, or alone in one."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *(torchrun if count > 1 else []), str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def finish(process):
    """The exit code and the output of `launch`'s process."""
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, output.decode()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "steps.py").write_text(STEPS)
    (folder / "run.py").write_text(RUN)
    return folder


def distance(left, right):
    """|left - right| / |right| over all tensors of two dicts, floating-point ones."""
    assert left.keys() == right.keys()
    pairs = [(left[key], right[key]) for key in left if right[key].is_floating_point()]
    assert all(a.dtype == torch.float64 for a, _ in pairs)
    error = sum((a - b).square().sum() for a, b in pairs)
    return (error / sum(b.square().sum() for _, b in pairs)).sqrt().item()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["continuous", "discrete"])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, photos, scripts, stage):
    # A clip that bites: two clipped gradients would not average to the clipped average.
    changes = {"stage": stage, "clip": 0.01, "lr": 1e-3}
    if stage == "continuous":
        changes |= {"scale": None, "queries": 64}
    outcomes = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        config = write_config(folder, photos, batch=4 // count, **changes)
        code, output = finish(launch(scripts / "steps.py", config, folder / "result", count=count))
        assert code == 0, output
        outcomes[count] = [torch.load(folder / f"result.{rank}") for rank in range(count)]
    (one,), (first, second) = outcomes[1], outcomes[2]
    assert (one["count"], first["count"]) == (1, 2)
    assert all(gradient.norm() > 0 for gradient in one["gradients"].values())
    assert distance(first["gradients"], one["gradients"]) < 1e-10
    assert distance(first["net"], one["net"]) < 1e-6
    assert distance(first["average"], one["average"]) < 1e-6
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)
    for name in ("net", "average", "gradients"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(tmp_path, photos, scripts):
    """A signal in process 1 stops both after the same step; resumed, they end as if unbroken."""
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "stopped").mkdir()
    states = {}
    config = write_config(tmp_path / "unbroken", photos, steps=6)
    code, output = finish(launch(scripts / "run.py", config, "none", 0, 0))
    assert code == 0, output
    states["unbroken"] = torch.load(config.parent / "run" / "state.pt", weights_only=True)

    config = write_config(tmp_path / "stopped", photos, steps=6)
    state = config.parent / "run" / "state.pt"
    code, output = finish(launch(scripts / "run.py", config, "signal", 1, 2))
    assert code == 0 and output.count("stopped at step 3; continue with --resume") == 1, output
    assert torch.load(state, weights_only=True)["step"] == 3
    with pytest.raises(ConfigError, match="2 samples in each of 2 processes, now 2 in"):
        training.run(config, resume=True)
    code, output = finish(launch(scripts / "run.py", config, "none", 0, 0, "--resume"))
    assert code == 0 and output.count("step 3 of 6") == 1, output
    states["stopped"] = torch.load(state, weights_only=True)
    for name in ("net", "average", "optimizer"):
        left, right = (states[key][name] for key in ("unbroken", "stopped"))
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert states["stopped"]["processes"] == 2
    assert sorted(path.name for path in state.parent.glob("*.*")) == [
        "best.safetensors",
        "config.yaml",
        "model.safetensors",
        "state.pt",
    ]


@pytest.mark.slow
def test_nan_in_one_process_stops_both(tmp_path, photos, scripts):
    config = write_config(tmp_path, photos, steps=6)
    code, output = finish(launch(scripts / "run.py", config, "nan", 1, 1))
    assert code != 0 and output.count("the loss or a gradient became nan at step 1") == 1, output
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == 1 and all(value.isfinite().all() for value in state["net"].values())


@pytest.mark.slow
def test_ctrl_c_of_torchrun_saves(tmp_path, photos, scripts):
    config = write_config(tmp_path, photos, steps=100_000, checkpoint_every=1)
    state = tmp_path / "run" / "state.pt"
    process = launch(scripts / "run.py", config, "none", 0, 0)
    while not state.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code != 0 and output.count("continue with --resume") == 1, output
    step = torch.load(state, weights_only=True)["step"]
    assert step >= 1 and f"stopped at step {step};" in output


def test_a_process_alone_has_nobody_to_wait_for():
    alone = Processes(torch.device("cpu"))
    net = torch.nn.Linear(1, 1)
    assert alone.first and alone.share(net) is net
    assert alone.mean(0.1) == 0.1 and alone.any(True) and not alone.any(False)


def test_several_processes_do_not_share_a_named_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = "device is cuda:1, but each of several processes takes a GPU of its own; use cuda"
    with pytest.raises(ValueError, match=said), processes.join("cuda:1"):
        pass
