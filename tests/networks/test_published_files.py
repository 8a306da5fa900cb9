"""Files of published networks in every variant: they load and compute what a plain module does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import published_mambairv2
import pytest
import torch
from published_layers import randomised
from published_networks import hat, hit, mambair, mambairv2, srformer, swin2sr, swinir
from torch import nn

from c2d_models import create, load, upscale
from c2d_models.errors import NetworkError
from c2d_models.networks import checkpoint
from c2d_models.networks.authors import authors_names

FILES: dict[str, Callable[[], nn.Module]] = {
    "SwinIR lightweight x3": lambda: swinir(3, "pixelshuffledirect"),
    **{f"SwinIR classical x{s}": (lambda s=s: swinir(s, "pixelshuffle")) for s in (2, 3, 4, 8)},
    "SwinIR real-world M x2": lambda: swinir(2, "nearest+conv"),
    "SwinIR real-world M x4": lambda: swinir(4, "nearest+conv"),
    "SwinIR real-world L x4": lambda: swinir(4, "nearest+conv", kind="3conv"),
    "SwinIR of another width": lambda: swinir(2, "pixelshuffle", num_feat=20, depths=(2, 1, 3)),
    "SwinIR noise, grey": lambda: swinir(1, "", colours=1),
    "SwinIR noise, colour": lambda: swinir(1, ""),
    "SwinIR JPEG, grey": lambda: swinir(1, "", window=7, img_range=255.0, colours=1),
    "SwinIR JPEG, colour": lambda: swinir(1, "", window=7, img_range=255.0),
    "SRFormer light x2": lambda: srformer(2, "pixelshuffledirect"),
    "SRFormer M x4": lambda: srformer(4, "pixelshuffle"),
    "HAT x2": lambda: hat(2, "pixelshuffle"),
    "HAT x4": lambda: hat(4, "pixelshuffle"),
    "Swin2SR lightweight x2": lambda: swin2sr(2, "pixelshuffledirect"),
    "Swin2SR classical x4": lambda: swin2sr(4, "pixelshuffle"),
    "Swin2SR compressed x4": lambda: swin2sr(4, "pixelshuffle_aux"),
    "Swin2SR real-world x4": lambda: swin2sr(4, "nearest+conv"),
    "HiT-SIR x2": lambda: hit(2, context=False, convolutional=False),
    "HiT-SRF x3": lambda: hit(3, context=False, convolutional=True),
    "HiT-SNG x4": lambda: hit(4, context=True, convolutional=False),
    "MambaIR light x2": lambda: mambair(2, "pixelshuffledirect", light=True, ratio=1.2),
    "MambaIR x4": lambda: mambair(4, "pixelshuffle", light=False, ratio=2),
    "MambaIR of another width": lambda: mambair(2, "pixelshuffle", light=False, ratio=1.3, dim=21),
    "MambaIR noise, colour": lambda: mambair(1, "", light=False, ratio=2),
    "MambaIRv2 light x2": lambda: mambairv2(2, "pixelshuffledirect", gated=True, ratio=1),
    "MambaIRv2 base x2": lambda: mambairv2(2, "pixelshuffle", gated=False, ratio=2),
    "MambaIRv2 JPEG, grey": lambda: mambairv2(1, "", gated=False, ratio=2, colours=1),
}


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """MambaIRv2's authors draw a token's class, and the order within one is the machine's.

    Ours takes the likeliest in evaluation, and keeps the image's order.
    """

    def hard(logits: torch.Tensor, hard: bool, dim: int) -> torch.Tensor:
        return nn.functional.one_hot(logits.argmax(dim), logits.shape[dim]).to(logits)

    monkeypatch.setattr(nn.functional, "gumbel_softmax", hard)
    monkeypatch.setattr(published_mambairv2.ASSM, "stable", True)


def stored(name: str, folder: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(6)
    net = randomised(FILES[name]()).eval()
    torch.save({"params": net.state_dict()}, folder / "net.pth")
    return net, folder / "net.pth"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("size", [(19, 26), (8, 28)], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_a_file_computes_what_its_network_does(name, size, tmp_path):
    net, path = stored(name, tmp_path)
    ours = load(path)
    assert ours.scale == net.scale
    image = torch.rand(2, net.conv_first.in_channels, *size)
    with torch.no_grad():
        expected, found = net(image), ours(image)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        net, ours = net.double(), ours.double()
        expected, found = net(image.double()), ours(image.double())
        # Swin2SR's offsets are a buffer of float32 numbers.
        bound = 1e-8 if name.startswith("Swin2SR") else 1e-12
        assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("name", FILES)
def test_our_file_of_it_says_the_same(name, tmp_path):
    net, path = stored(name, tmp_path)
    ours = load(path)
    checkpoint.save(ours, tmp_path / "ours.safetensors")
    again = load(tmp_path / "ours.safetensors")
    assert (again.name, again.scale, again.config) == (ours.name, ours.scale, ours.config)
    assert authors_names(again.state_dict()).keys() <= net.state_dict().keys()
    for key, value in authors_names(again.state_dict()).items():
        assert torch.equal(value, net.state_dict()[key]), key


@pytest.mark.parametrize(
    "name",
    [
        "SwinIR classical x4",
        "SwinIR real-world M x4",
        "SwinIR JPEG, colour",
        "Swin2SR compressed x4",
    ],
)
def test_tiles_meet_without_a_seam(name, tmp_path, monkeypatch):
    """A tail of convolutions reads rows above and below each strip, and the image's padding."""
    from c2d_models.upscaling import tiling

    net, path = stored(name, tmp_path)
    pixels = torch.rand(37, 45, 3).numpy()
    with torch.no_grad():
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        expected = net(image)[0].permute(1, 2, 0).clamp(0, 1)
    whole = torch.from_numpy(upscale(pixels, model=path))
    assert (whole - expected).abs().max() <= 1e-5
    monkeypatch.setattr(tiling.Plan, "fit", lambda *_: tiling.Plan(10**4, 32, 1))  # a row a strip
    strips = torch.from_numpy(upscale(pixels, model=path))
    assert (strips - expected).abs().max() <= 1e-5


def test_colours_through_a_grey_network_go_one_by_one(tmp_path):
    net, path = stored("SwinIR noise, grey", tmp_path)
    pixels = torch.rand(16, 20, 3)
    with torch.no_grad():
        expected = net(pixels.permute(2, 0, 1)[:, None])[:, 0].permute(1, 2, 0).clamp(0, 1)
    assert (torch.from_numpy(upscale(pixels.numpy(), model=path)) - expected).abs().max() <= 1e-5
    with pytest.raises(NetworkError, match=r"x must have the shape .B, 1, H, W., grey"):
        load(path)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mambair_l", (905_016, 913_131, 924_492)),
        ("mambair", (20_421_863, 20_606_503, 20_569_575)),
        ("hit_sng", (1_012_584, 1_020_699, 1_032_060)),
    ],
)
def test_sizes_are_the_published_ones(name, parameters):
    """MambaIR's and HiT-SR's tables say 905K, 913K, 924K; 20.4M; 1,013K, 1,021K, 1,032K."""
    for scale, expected in zip((2, 3, 4), parameters, strict=True):
        assert sum(x.numel() for x in create(name, scale).parameters()) == expected
