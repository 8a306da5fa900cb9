"""`c2d export`: files for the authors' code, ONNX Runtime and torch.export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_weights import listing
from published_layers import randomised
from published_networks import swinir

from c2d_models import create, export, load
from c2d_models.cli import main
from c2d_models.errors import ModelFileError

SMALL = {"dim": 24, "num_heads": 3, "depths": [2, 2], "window_size": 4}


def lively(name: str = "swinir_m", scale: int = 2, **config: object) -> torch.nn.Module:
    torch.manual_seed(4)
    return randomised(create(name, scale, config={**SMALL, **config})).eval()


@pytest.mark.parametrize(
    ("name", "published"),
    [("swinir_l", "swinir_light"), ("srformer_l", "srformer_light"), ("hit_sir", "hit_sir")]
    + [("hit_srf", "hit_srf"), ("mambairv2_l", "mambairv2_light")],
)
def test_authors_names_shapes_and_buffers(name, published, tmp_path):
    path = export(create(name, 3), tmp_path / "net.pth")
    state = torch.load(path, weights_only=True)["params"]
    wanted = {key: (tuple(shape), kind) for key, shape, kind, _ in listing(f"{published}_x3")}
    found = {key: (tuple(x.shape), str(x.dtype)[6:]) for key, x in state.items()}
    assert found == wanted


def test_authors_buffers_hold_what_their_module_makes(tmp_path):
    """A plain module of the published names loads the file strictly, and computes the same."""
    net = lively()
    path = export(net, tmp_path / "net.pth", image_size=8)
    plain = swinir(2, "pixelshuffle")
    made = {key: value.clone() for key, value in plain.named_buffers()}
    plain.load_state_dict(torch.load(path, weights_only=True)["params"])
    assert made
    for key, value in plain.named_buffers():
        assert torch.equal(value, made[key]), key
    image = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        assert torch.allclose(plain(image), net(image), atol=1e-5)
    again = load(path)
    assert all(torch.equal(x, net.state_dict()[key]) for key, x in again.state_dict().items())


ONNX = {
    "classical": lambda: lively(),
    "real-world": lambda: lively(scale=4, upsampler="nearest+conv"),
    "grey": lambda: lively(scale=1, upsampler="", in_channels=1),
    "lightweight": lambda: lively("swinir_l"),
    "srformer": lambda: lively("srformer_l", window_size=8),
    "hit": lambda: randomised(create("hit_sir_tiny", 2, config={"groups": 1, "windows": [4, 16]})),
    "hiet": lambda: create("hiet_swinir_tiny", 2, config={"blocks": 1, "windows": [16]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONNX)
def test_onnx_runtime_computes_the_same_at_any_size(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = ONNX[kind]()
    session = runtime.InferenceSession(export(net, tmp_path / "net.onnx").read_bytes())
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["scale"], facts["network"]) == (str(net.scale), net.name)
    for batch, *size in ((1, 17, 23), (2, 40, 9)):
        image = torch.rand(batch, net.in_channels, *size)
        with torch.no_grad():
            expected = net.eval()(image)
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["classical", "hiet"])
def test_torch_export_runs_on_the_operators(kind, tmp_path):
    net = ONNX[kind]().eval()
    program = torch.export.load(export(net, tmp_path / "net.pt2"))
    assert any("c2d" in str(node.target) for node in program.graph.nodes)
    image = torch.rand(1, 3, 17, 23)
    with torch.no_grad():
        expected, found = net(image), program.module()(image)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("net", "name", "options", "sentence"),
    [
        (("hiet_swinir_tiny", None), "a.onnx", {}, "is continuous"),
        (("hiet_swinir_tiny", 2), "a.pth", {}, "has no authors' format"),
        (("swinir_l_tiny", 2), "a.pth", {}, "has no authors' format"),
        (("swinir_l", 2), "a.txt", {}, "does not say a format"),
        (("swinir_l", 2), "a.onnx", {"image_size": 64}, "to the format authors only"),
        (("swinir_l", 2), "a.pth", {"image_size": 60}, "needs a multiple of 8"),
        (("mambairv2_l", 2), "a.onnx", {}, "ONNX has no operator"),
    ],
)
def test_what_cannot_be_exported(net, name, options, sentence, tmp_path):
    with pytest.raises(ModelFileError, match=sentence):
        export(create(*net), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(tmp_path, capsys):
    target = tmp_path / "x4.pt2"
    assert main(["export", "hiet_swinir_tiny_x4", "-o", str(target)]) == 0
    assert f"hiet_swinir_tiny_x4 -> {target}" in capsys.readouterr().out
    assert Path(target).is_file()
