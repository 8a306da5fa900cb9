"""HiT-SIR and HiT-SRF against their authors' networks; their windows and position tables."""

import numpy as np
import pytest
import torch
from golden_weights import FOLDER, golden_state_dict, listing
from torch import nn

from c2d_models import create
from c2d_models.hit import RelativeBias, SelfCorrelation
from c2d_models.srformer import SRFormerLayer

NETWORKS = ["hit_sir", "hit_srf"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_is_the_published_one(name, scale):
    published = {
        name: tuple(shape)
        for name, shape, _, kind in listing(f"{name}_x{scale}")
        if kind == "parameter"
    }
    ours = create(name, scale).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == published


@pytest.mark.parametrize(
    ("name", "scale", "params"),
    [
        ("hit_sir", 2, 772_064),
        ("hit_sir", 3, 780_179),
        ("hit_sir", 4, 791_540),
        ("hit_srf", 2, 846_944),
        ("hit_srf", 3, 855_059),
        ("hit_srf", 4, 866_420),
    ],
)
def test_parameters_as_published(name, scale, params):
    assert sum(p.numel() for p in create(name, scale).parameters()) == params


def golden_network(dtype: torch.dtype) -> torch.nn.Module:
    net = create("hit_sir", 2).to(dtype).eval()
    weights = golden_state_dict("hit_sir_x2")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return net


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "hit_sir_x2_40x72.npz") as case:
        image, output = (torch.from_numpy(case[name]) for name in ("input", "output"))
        return image, output, float(case["fp32_gap"])


def test_golden_output_in_float64(golden):
    image, expected, _ = golden
    with torch.no_grad():
        error = (golden_network(torch.float64)(image) - expected).abs().max().item()
    assert error < 1e-12


def test_golden_output_in_float32(golden):
    image, expected, gap = golden
    with torch.no_grad():
        error = (golden_network(torch.float32)(image.float()) - expected).abs().max().item()
    assert error < 5 * gap


def test_srf_differs_from_sir_by_srformer_s_feed_forward(rng):
    """SRFormer's weights give SRFormer's values; with no branch and equal weights, HiT-SIR's."""
    sir, srf = (create(name, 2, config={"groups": 1}).eval() for name in NETWORKS)
    layer = srf.layers[0].residual_group.blocks[0]
    theirs = SRFormerLayer(60, 6, 16, 0, 2).mlp
    layer.mlp.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 7, 9, 60, generator=rng)
    assert torch.equal(layer.mlp(x), theirs(x))
    unmatched = srf.load_state_dict(sir.state_dict(), strict=False)
    assert unmatched.unexpected_keys == []
    assert len(unmatched.missing_keys) == 2 * 6
    for name, parameter in srf.named_parameters():
        if "dwconv" in name:
            nn.init.zeros_(parameter)
    x = torch.rand(1, 3, 9, 13, generator=rng)
    with torch.no_grad():
        torch.testing.assert_close(srf(x), sir(x), atol=1e-6, rtol=0)


def test_windows_grow_in_every_group():
    for group in create("hit_sir").layers:
        windows = [layer.correlation.window_size for layer in group.residual_group.blocks]
        assert windows == [4, 8, 16, 32, 48, 64]


def test_bias_table_is_by_offset_from_top_left():
    bias = RelativeBias(3, 4, 2)
    table = bias()
    assert table.shape == (49, 2)
    for y, x in [(-3, -3), (-3, 2), (0, 0), (3, -1)]:
        offset = torch.tensor([float(y), float(x)])
        expected = bias.pos3(bias.pos2(bias.pos1(bias.pos_proj(offset))))
        torch.testing.assert_close(table[(y + 3) * 7 + x + 3], expected, atol=1e-6, rtol=0)


def test_a_layer_mirrors_its_map(rng):
    """A cut map gives what the map mirrored by hand gives where both have pixels."""
    correlation = SelfCorrelation(12, 4, 4, 2)
    x = torch.randn(1, 6, 7, 12, generator=rng)
    mirrored = torch.cat([x, x[:, [4, 3]]], dim=1)
    mirrored = torch.cat([mirrored, mirrored[:, :, 5:6]], dim=2)
    expected = correlation(mirrored)[:, :6, :7]
    torch.testing.assert_close(correlation(x), expected, atol=1e-6, rtol=0)


def test_prepare_freezes_and_train_thaws(rng):
    net = create("hit_sir_tiny", 2, config={"windows": [4, 8]}).prepare()
    names = list(net.state_dict())
    tables = [module for module in net.modules() if isinstance(module, RelativeBias)]
    assert len(tables) == 4 and not net.training
    x = torch.rand(1, 9, 8, 3, dtype=torch.float64, generator=rng)
    net.double()  # the tables must follow
    before = net.body(x)
    for module in tables:
        nn.init.ones_(module.pos3[2].bias)
    assert torch.equal(net.body(x), before)
    assert not torch.equal(net.prepare().body(x), before)
    assert list(net.state_dict()) == names
    frozen = net.body(x)
    for module in tables:
        nn.init.zeros_(module.pos3[2].bias)
    assert not torch.equal(net.train().eval().body(x), frozen)
