"""from_pretrained, save_pretrained and push_to_hub; nothing here reaches a network."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import hub_mixin
from huggingface_hub.errors import LocalEntryNotFoundError

import c2d_models
from c2d_models import create, load
from c2d_models.errors import ModelFileError
from c2d_models.networks import checkpoint, hub
from c2d_models.networks.hiet import HiET, HiETMambaIRv2, HiETSRFormer
from c2d_models.networks.hit import HiTSIR
from c2d_models.networks.network import Network
from c2d_models.networks.registry import NETWORKS
from c2d_models.networks.srformer import SRFormer
from c2d_models.networks.swinir import SwinIR
from c2d_models.pretrained import loading

ROOT = Path(__file__).parents[2]
SMALL = {"depths": [1], "dim": 8, "num_heads": 2}
RECORD = {
    "config": {"stage": "discrete", "batch": 4, "lr": 0.001, "licences": ["a: CC0", "b: MIT"]},
    "step": 700,
    "training_images": 12,
    "curve": [{"step": 1, "psnr_x3": 20.5}, {"step": 700, "loss": 0.02, "psnr_x3": 33.25}],
}


def small_swinir(scale: int | None = 3, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    net = create("swinir_l_tiny", scale, config=SMALL)
    net.record = RECORD
    return net


def card_of(folder: Path) -> tuple[dict, str]:
    """The card's metadata and its text."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.parametrize("scale", [2, None], ids=["x2", "continuous"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("swinir_l_tiny", SwinIR),
        ("hit_sir_tiny", HiTSIR),
        ("hiet_swinir_tiny", HiET),
        ("hiet_srformer_tiny", HiETSRFormer),
        ("hiet_mambairv2_tiny", HiETMambaIRv2),
    ],
)
def test_round_trip(name, kind, scale, tmp_path):
    torch.manual_seed(0)
    net = create(name, scale).eval()
    assert net.save_pretrained(tmp_path / "new" / "folder") is None
    again = kind.from_pretrained(tmp_path / "new" / "folder")
    assert type(again) is kind and not again.training
    assert (again.name, again.scale, again.config) == (name, scale, net.config)
    x = torch.rand(1, 3, 11, 13, generator=torch.Generator().manual_seed(1))
    place = {"size": (17, 30)} if scale is None else {}
    with torch.no_grad():
        assert torch.equal(again(x, **place), net(x, **place))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_three(name):
    kind = NETWORKS[name].constructor
    for method in ("from_pretrained", "save_pretrained", "push_to_hub"):
        assert "options" in inspect.signature(getattr(kind, method)).parameters


def test_what_a_folder_holds(tmp_path):
    net = small_swinir()
    net.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"name": "swinir_l_tiny", "scale": 3, "config": net.config}
    assert loading.read_record(tmp_path) == RECORD


def test_load_takes_the_folder(tmp_path):
    net = small_swinir()
    net.save_pretrained(tmp_path)
    for again in (load(tmp_path), Network.from_pretrained(str(tmp_path))):
        assert type(again) is SwinIR and again.record == RECORD
        for key, value in net.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key


def test_the_model_file_decides_not_the_config(tmp_path):
    small_swinir().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "hit_sir", "scale": 2, "config": {"dim": 5}}')
    again = SwinIR.from_pretrained(tmp_path)
    assert (again.name, again.scale, again.config["dim"]) == ("swinir_l_tiny", 3, 8)


def test_dtype_and_half_precision(tmp_path):
    small_swinir().half().save_pretrained(tmp_path)
    assert SwinIR.from_pretrained(tmp_path).conv_first.weight.dtype == torch.float32
    again = SwinIR.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert again.conv_first.weight.dtype == torch.bfloat16


def test_card(tmp_path):
    small_swinir().save_pretrained(tmp_path)
    head, text = card_of(tmp_path)
    assert (head["library_name"], head["license"]) == ("c2d-isr", "apache-2.0")
    assert head["pipeline_tag"] == "image-to-image"
    assert {"super-resolution", "image-upscaling", "pytorch"} <= set(head["tags"])
    count = sum(p.numel() for p in small_swinir().parameters())
    for line in (
        "# swinir_l_tiny, x3\n",
        f"{count:,} parameters",
        "from c2d_models.networks.swinir import SwinIR",
        "- stage: discrete\n",
        "- steps: 700\n",
        "- data: a: CC0; b: MIT\n",
        "- PSNR on held-out training photographs, dB: x3 33.25\n",
    ):
        assert line in text
    assert "{{" not in text and "None" not in text


def test_card_of_a_fresh_network(tmp_path):
    create("swinir_l_tiny", None, config=SMALL).save_pretrained(tmp_path)
    _, text = card_of(tmp_path)
    assert "any factor from 1 to 4" in text and "- This file has no training record.\n" in text


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    small_swinir().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "asked", "sentence"),
    [
        pytest.param(
            "swinir_l_tiny",
            HiET,
            "holds a SwinIR (swinir_l_tiny), not a HiET: load it by SwinIR.from_pretrained, or by "
            "c2d_models.load, which takes any",
            id="another family",
        ),
        pytest.param(
            "hiet_srformer_tiny",
            HiET,
            "holds a HiETSRFormer (hiet_srformer_tiny), not a HiET",
            id="subclass",
        ),
        pytest.param(
            "swinir_l_tiny",
            SRFormer,
            "holds a SwinIR (swinir_l_tiny), not a SRFormer",
            id="superclass",
        ),
    ],
)
def test_another_class_is_refused(name, asked, sentence, tmp_path):
    create(name, 4).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError) as caught:
        asked.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} {sentence}") and "\n" not in str(caught.value)


def test_bad_places_get_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ModelFileError, match=r"is a folder without a model\.safetensors"):
        HiET.from_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="'too/many/parts' is not a folder here, and the Hub"):
        HiET.from_pretrained("too/many/parts", local_files_only=True)

    def refuse(*args, **options):
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(hub_mixin, "hf_hub_download", refuse)
    with pytest.raises(ModelFileError, match=r"'me/net' is not a folder here, .*: no connection$"):
        HiET.from_pretrained("me/net")


def test_from_the_hub(tmp_path, monkeypatch):
    """The two files that are asked of the Hub, and with which options."""
    net = small_swinir(None)
    net.save_pretrained(tmp_path)
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options["revision"], options["token"]))
        return str(tmp_path / filename)

    monkeypatch.setattr(
        hub_mixin,
        "hf_hub_download",
        lambda *, repo_id, filename, **options: download(repo_id, filename, **options),
    )
    monkeypatch.setattr(hub, "hf_hub_download", download)
    again = SwinIR.from_pretrained("me/net", revision="v2", token="t")
    assert asked == [
        ("me/net", "config.json", "v2", "t"),
        ("me/net", "model.safetensors", "v2", "t"),
    ]
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    with pytest.raises(ModelFileError, match="me/net holds a SwinIR"):
        HiET.from_pretrained("me/net")


class FakeHub:
    """In the place of HfApi: keeps what it is given."""

    def __init__(self, token=None):
        FakeHub.token, FakeHub.files = token, {}

    def create_repo(self, repo_id, **options):
        FakeHub.made = (repo_id, options["private"])
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, revision, **options):
        FakeHub.uploaded = (repo_id, revision, options["repo_type"])
        FakeHub.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://hub/{repo_id}/commit/1"


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_what_is_uploaded(way, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_mixin, "HfApi", FakeHub)
    net = small_swinir()
    options = {"private": True, "token": "t", "branch": "draft"}
    if way == "push_to_hub":
        url = net.push_to_hub("me/net", **options)
    else:
        url = net.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/net", **options)
    assert url == "https://hub/me/net/commit/1"
    assert FakeHub.token == "t" and FakeHub.made == ("me/net", True)
    assert FakeHub.uploaded == ("me/net", "draft", "model")
    assert sorted(FakeHub.files) == ["README.md", "config.json", "model.safetensors"]
    for name, content in FakeHub.files.items():
        (tmp_path / name).write_bytes(content)
    again = SwinIR.from_pretrained(tmp_path)
    assert again.record == RECORD
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_file_on_disk_needs_no_hub(tmp_path):
    """Who loads a file or makes a network does not wait for huggingface_hub to be imported."""
    checkpoint.save(small_swinir(), tmp_path / "net.safetensors")
    code = (
        "import sys, c2d_models\n"
        "assert 'torch' not in sys.modules\n"
        f"c2d_models.load({str(tmp_path / 'net.safetensors')!r})\n"
        "print('huggingface_hub' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out == "False\n"


def test_upscale_takes_the_folder(tmp_path):
    small_swinir().save_pretrained(tmp_path)
    image = torch.zeros(5, 6, 3, dtype=torch.uint8).numpy()
    assert c2d_models.upscale(image, model=tmp_path).shape == (15, 18, 3)
