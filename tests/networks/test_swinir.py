"""SwinIR's shifts."""

from c2d_models import create


def test_shift_alternates():
    net = create("swinir_l_tiny", 2)
    assert [[b.attn.shift for b in layer.residual_group.blocks] for layer in net.layers] == [
        [0, 4],
        [0, 4],
    ]
