"""HiT-SR's windows, position tables and borders."""

import torch
from torch import nn

from c2d_models import create
from c2d_models.networks.hit import RelativeBias, SelfCorrelation
from c2d_models.networks.srformer import SRFormerLayer

NETWORKS = ["hit_sir", "hit_srf"]


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
    table = bias(torch.empty(1))
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
