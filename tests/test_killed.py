"""kill -9 at any moment: what is finished is whole, and the next run completes and cleans up.

C2D_FUZZ multiplies the rounds (three of `c2d upscale` and two of `c2d train` in the everyday run).
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from c2d_models import create
from c2d_models.networks import checkpoint
from c2d_models.pretrained import loading
from tests.images.samples import noise, write
from tests.training.short_run import write_config

ROOT = Path(__file__).parents[1]
FACTOR = int(os.environ.get("C2D_FUZZ", "1"))
SMALL = {"depths": [1], "dim": 8, "num_heads": 2}


def start(folder, command):
    """`c2d` in a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "c2d_models.cli", *command.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process):
    complaint = process.communicate()[1].decode()
    assert process.returncode == 0, complaint


def kill_at_random(process, begun, longest, rng):
    """Kill it within `longest` seconds after `begun()`; says whether it was still at work."""
    while not begun() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, longest))
    process.kill()
    process.communicate()
    return process.returncode == -9


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A model, pictures in `in`, and in `whole` what a run that nobody kills makes of them."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    checkpoint.save(create("swinir_l_tiny", 2, config=SMALL), folder / "a.safetensors")
    for number in range(16):
        kind = ("png", "jpg", "webp", "tif")[number % 4]
        write(folder / "in" / f"{number}.{kind}", noise(160, 120, 3, seed=number))
    started = time.perf_counter()
    process = start(folder, "upscale in -o whole --model a.safetensors")
    while not (folder / "whole").exists() and process.poll() is None:
        time.sleep(0.01)
    started = time.perf_counter()
    finish(process)
    return folder, contents(folder / "whole"), time.perf_counter() - started


@pytest.mark.parametrize("number", range(3 * FACTOR))
def test_a_killed_batch(pictures, number):
    folder, whole, seconds = pictures
    out, rng = folder / "out", np.random.default_rng(number)
    shutil.rmtree(out, ignore_errors=True)
    process = start(folder, "upscale in -o out --model a.safetensors")
    killed = kill_at_random(process, out.exists, seconds, rng)
    finished = {name: data for name, data in contents(out).items() if not name.startswith(".")}
    assert finished.items() <= whole.items()
    assert killed or finished == whole
    finish(start(folder, "upscale in -o out --model a.safetensors"))
    assert contents(out) == whole


@pytest.fixture(scope="module")
def training(tmp_path_factory, photos):
    """A configuration that saves at every step, and what a run makes that nobody kills."""
    folder = tmp_path_factory.mktemp("training")
    changes = {"options": SMALL, "network": "swinir_l_tiny", "steps": 24, "checkpoint_every": 1}
    config = write_config(folder, photos, **changes)
    process = start(folder, f"train {config}")
    while not (folder / "run").exists() and process.poll() is None:
        time.sleep(0.01)
    started = time.perf_counter()
    finish(process)
    seconds = time.perf_counter() - started
    return folder, config, loading.load(folder / "run").state_dict(), seconds


@pytest.mark.parametrize("number", range(2 * FACTOR))
def test_a_killed_training(training, number):
    folder, config, whole, seconds = training
    run, rng = folder / "run", np.random.default_rng(number)
    shutil.rmtree(run)
    kill_at_random(start(folder, f"train {config}"), run.exists, seconds, rng)
    resume = ""
    if (run / "state.pt").exists():
        resume = "--resume"
        assert 0 < torch.load(run / "state.pt", weights_only=True)["step"] <= 24
        loading.load(run)
    finish(start(folder, f"train {config} {resume}"))
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    trained = loading.load(run).state_dict()
    assert all(torch.equal(trained[key], value) for key, value in whole.items())
