"""SRFormer's feed-forward and shifts."""

import torch
from torch.nn import functional as F

from c2d_models import create
from c2d_models.networks.fused import ConvFFN


def test_conv_ffn_adds_a_depthwise_branch(rng):
    """fc2(h + GELU(dw(h))), h = GELU(fc1 x), the 5x5 taps of one channel summed by hand."""
    ffn = ConvFFN(4, 1.5).double()
    x = torch.randn(1, 3, 6, 4, dtype=torch.float64, generator=rng)
    hidden = F.gelu(ffn.fc1(x))
    depthwise = ffn.dwconv.depthwise_conv[0]
    assert depthwise.weight.shape == (6, 1, 5, 5)
    padded = F.pad(hidden, (0, 0, 2, 2, 2, 2))
    branch = depthwise.bias + sum(
        padded[:, i : i + 3, j : j + 6] * depthwise.weight[:, 0, i, j]
        for i in range(5)
        for j in range(5)
    )
    expected = ffn.fc2(hidden + F.gelu(branch))
    torch.testing.assert_close(ffn(x), expected, atol=1e-12, rtol=0)


def test_shift_alternates():
    net = create("srformer_l", 2, config={"dim": 24, "depths": [3, 1]})
    shifts = [[b.attn.shift for b in layer.residual_group.blocks] for layer in net.layers]
    assert shifts == [[0, 8, 0], [0]]
