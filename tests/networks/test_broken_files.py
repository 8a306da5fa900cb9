"""Model files and configurations broken at random: one sentence, never a traceback or foreign code.

C2D_FUZZ multiplies the number of files (40 of each kind in the everyday run).
"""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
import yaml

from c2d_models import create
from c2d_models.errors import ConfigError, ModelFileError, NetworkError
from c2d_models.networks import checkpoint
from c2d_models.pretrained import loading
from c2d_models.training.config import load_config
from tests.mutations import mutate

COUNT = 40 * int(os.environ.get("C2D_FUZZ", "1"))
SMALL = {"depths": [1], "dim": 8, "num_heads": 2}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A whole file of each kind, as bytes by ending."""
    folder = tmp_path_factory.mktemp("whole")
    net = create("swinir_l_tiny", 2, config=SMALL)
    checkpoint.save(net, folder / "a.safetensors", {"steps": 7})
    torch.save({"params": net.state_dict()}, folder / "a.pth")
    torch.save(net.state_dict(), folder / "a.pt", _use_new_zipfile_serialization=False)
    config = {
        "network": "hiet_swinir_tiny",
        "stage": "continuous",
        "data": ["photos"],
        "output": "runs/x",
        "steps": 10,
        "lr": 1e-3,
        "milestones": [5, 7],
        "augmentation": {"grey": 0.1},
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
def test_broken_model_files(seeds, tmp_path, ending):
    rng, told = np.random.default_rng(1), {}
    for number in range(COUNT):
        path = tmp_path / f"broken{ending}"
        path.write_bytes(mutate(seeds[ending], rng))
        try:
            for read in (loading.load, loading.read_record):
                read(path)
        except (ModelFileError, NetworkError) as error:
            told[number] = str(error)
    assert len(told) > COUNT / 10
    assert [n for n, text in told.items() if "broken" not in text or "\n" in text] == []


@pytest.mark.parametrize("part", ["c2d_isr", "record"])
def test_a_whole_file_with_broken_metadata(seeds, tmp_path, part):
    """Only our own texts in the header are hurt: what safetensors itself checks is whole."""
    data = seeds[".safetensors"]
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text, rng, told = header["__metadata__"][part].encode(), np.random.default_rng(2), {}
    for number in range(COUNT):
        header["__metadata__"][part] = mutate(text, rng).decode("latin-1")
        new = json.dumps(header).encode()
        path = tmp_path / "broken.safetensors"
        path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
        try:
            loading.load(path)
            loading.read_record(path)
        except (ModelFileError, NetworkError) as error:
            told[number] = str(error)
    assert len(told) > COUNT / 3
    assert [n for n, text in told.items() if "\n" in text] == []


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"dim": 10**9, "depths": [1], "num_heads": 2}},
        {"config": {"dim": 8, "depths": [10**9], "num_heads": 2}},
        {"config": {"dim": 8, "depths": 7, "num_heads": 2}},
        {"config": {"dim": "8", "depths": [1], "num_heads": 2}},
        {"config": {"dim": 8, "depths": [1], "num_heads": 0}},
        {"config": {"dim": -8, "depths": [1], "num_heads": 2}},
        {"config": {"nonsense": 1}},
        {"config": [1]},
        {"config": None},
        {"scale": 10**9},
        {"scale": "2"},
        {"scale": -1},
        {"name": ["swinir_l_tiny"]},
        {"name": {}},
        {"format": "1"},
        {"format": None},
    ],
    ids=str,
)
def test_metadata_that_make_no_network(seeds, tmp_path, change):
    data = seeds[".safetensors"]
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["c2d_isr"])
    header["__metadata__"]["c2d_isr"] = json.dumps(ours | change)
    new = json.dumps(header).encode()
    path = tmp_path / "broken.safetensors"
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
    with pytest.raises(ModelFileError, match="broken"):
        loading.load(path)


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_a_pickle_does_not_run_code(tmp_path, monkeypatch, ending, zipped):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bomb{ending}"
    if zipped:
        torch.save({"params": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"params": Bomb()}))
    with pytest.raises(ModelFileError, match="bomb"):
        loading.load(path)
    assert not (tmp_path / "ran").exists()


def test_broken_configurations(seeds, tmp_path):
    rng, told = np.random.default_rng(3), {}
    for number in range(5 * COUNT):
        path = tmp_path / "broken.yaml"
        path.write_bytes(mutate(seeds[".yaml"], rng))
        try:
            load_config(path)
        except ConfigError as error:
            told[number] = str(error)
    assert len(told) > COUNT
    assert [n for n, text in told.items() if "broken.yaml" not in text] == []
