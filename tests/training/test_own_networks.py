"""A network of one's own, registered in a module that the configuration names."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import c2d_models
from c2d_models.errors import ConfigError, NetworkError
from c2d_models.training import trainer as training
from tests.training.short_run import write_config

ROOT = Path(__file__).parents[2]
MODULE = '''
import c2d_models
from c2d_models.networks.layers import Conv3x3
from c2d_models.networks.upsamplers import BilinearPixelShuffle, upsampler


class Plain(c2d_models.Network):
    """Three convolutions."""

    pad_multiple, tile_multiple, min_overlap = 1, 1, 8

    def __init__(self, scale, *, dim, decoder=None):
        super().__init__(scale, {"dim": dim, "decoder": decoder})
        self.first, self.second = Conv3x3(3, dim), Conv3x3(dim, dim)
        self.upsample = upsampler(dim, scale, BilinearPixelShuffle, decoder)

    def body(self, image):
        return self.second(self.first(image - 0.5).relu())


DECODER = {"width": 8, "levels": 3, "heads": 2, "attentions": 1}
c2d_models.register("plain", Plain, {"dim": 8, "decoder": DECODER})
'''


def train_and_load(folder, config):
    """In a process of its own: this one would keep the registration."""
    code = (
        "import sys, torch; from c2d_models.training import trainer\n"
        "path = trainer.run(sys.argv[1])\n"
        "import c2d_models; net = c2d_models.load(path)\n"
        "size = None if net.scale else (20, 22)\n"
        "print(type(net).__name__, tuple(net(torch.rand(1, 3, 10, 11), size=size).shape))\n"
    )
    command = [sys.executable, "-c", code, str(config)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("stage", ["continuous", "discrete"])
def test_a_network_beside_its_configuration_is_trained_and_loads(tmp_path, photos, stage):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "my_nets.py").write_text(MODULE)
    changes = {"network": "plain", "imports": ["my_nets"], "stage": stage}
    changes |= {"scale": None, "queries": 64} if stage == "continuous" else {}
    config = write_config(tmp_path / "there", photos, **changes)
    done = train_and_load(tmp_path, config)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Plain (1, 3, 20, 22)\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "imports: no module my_broken_nets is installed or lies in .*"),
        ("import nowhere_at_all", "imports: my_broken_nets needs nowhere_at_all, which is not"),
        ("1 / 0", "imports: my_broken_nets fails: ZeroDivisionError: division by zero"),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path, photos, text, sentence):
    if text is not None:
        (tmp_path / "my_broken_nets.py").write_text(text)
    before = list(sys.path)
    with pytest.raises(ConfigError, match=sentence):
        training.load_config(write_config(tmp_path, photos, imports=["my_broken_nets"]))
    assert sys.path == before


def test_a_name_is_taken_once():
    preset = c2d_models.networks.NETWORKS["swinir_l"]
    c2d_models.register("swinir_l", preset.constructor, preset.config)  # the same again
    with pytest.raises(NetworkError, match="a network named 'swinir_l' already exists"):
        c2d_models.register("swinir_l", torch.nn.Linear, {})
