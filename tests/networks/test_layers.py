"""Padding, cropping, colour mean and the channels-last convolution."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import c2d_models
from c2d_models.networks.fused import WindowAttention
from c2d_models.networks.layers import Conv3x3
from c2d_models.networks.maps import (
    RGB_MEAN,
    colour_mean,
    crop,
    mirror_index,
    pad_to_multiple,
    symmetric_index,
)


@pytest.mark.parametrize(
    ("length", "padded", "expected"),
    [
        pytest.param(1, 4, [0, 0, 0, 0], id="one-pixel-repeats"),
        pytest.param(2, 8, [0, 1, 0, 1, 0, 1, 0, 1], id="two-pixels-alternate"),
        pytest.param(3, 8, [0, 1, 2, 1, 0, 1, 2, 1], id="mirrored-more-than-once"),
        pytest.param(5, 8, [0, 1, 2, 3, 4, 3, 2, 1], id="edge-not-repeated"),
        pytest.param(8, 8, [0, 1, 2, 3, 4, 5, 6, 7], id="nothing-to-pad"),
    ],
)
def test_mirror_index(length, padded, expected):
    assert mirror_index(length, padded).tolist() == expected
    reflected = np.pad(np.arange(length), (0, padded - length), mode="reflect")
    assert mirror_index(length, padded).tolist() == reflected.tolist()


@pytest.mark.parametrize(
    ("length", "padded", "expected"),
    [
        pytest.param(1, 4, [0, 0, 0, 0], id="one-pixel-repeats"),
        pytest.param(2, 7, [0, 1, 1, 0, 0, 1, 1], id="mirrored-more-than-once"),
        pytest.param(5, 8, [0, 1, 2, 3, 4, 4, 3, 2], id="edge-repeated"),
        pytest.param(8, 8, [0, 1, 2, 3, 4, 5, 6, 7], id="nothing-to-pad"),
    ],
)
def test_symmetric_index(length, padded, expected):
    assert symmetric_index(length, padded).tolist() == expected
    mirrored = np.pad(np.arange(length), (0, padded - length), mode="symmetric")
    assert symmetric_index(length, padded).tolist() == mirrored.tolist()


@pytest.mark.parametrize(
    ("height", "width", "padded"),
    [(1, 1, (8, 8)), (8, 16, (8, 16)), (9, 7, (16, 8)), (17, 30, (24, 32))],
    ids=["1x1", "fits", "9x7", "17x30"],
)
def test_crop_undoes_padding(height, width, padded, rng):
    x = torch.rand(2, height, width, 3, generator=rng)
    y = pad_to_multiple(x, 8)
    assert y.shape == (2, *padded, 3)
    assert torch.equal(crop(y, height, width), x)


def test_padding_is_reflection(rng):
    x = torch.rand(1, 9, 13, 2, generator=rng)
    expected = F.pad(x.permute(0, 3, 1, 2), (0, 3, 0, 7), mode="reflect").permute(0, 2, 3, 1)
    assert torch.equal(pad_to_multiple(x, 16), expected)


@pytest.mark.parametrize("index", [mirror_index, symmetric_index])
@pytest.mark.parametrize("size", [(1, 1), (8, 16), (9, 7), (3, 16)], ids=str)
def test_padding_and_crop_in_a_compiled_program(size, index, rng):
    """A program gathers all pixels, eager mode what is missing; gradients are added up alike."""
    x = torch.rand(2, *size, 3, generator=rng, dtype=torch.float64)

    def there_and_back(x):
        y = pad_to_multiple(x, 8, index)
        return y, crop(y.square(), *size)

    found = {}
    for name, function in {
        "eager": there_and_back,
        "compiled": torch.compile(there_and_back, backend="eager", fullgraph=True),
    }.items():
        leaf = x.clone().requires_grad_()
        padded, cropped = function(leaf)
        (padded.square().sum() + cropped.sum()).backward()
        found[name] = padded, cropped, leaf.grad
    for got, want in zip(found["eager"][:2], found["compiled"][:2], strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(found["eager"][2], found["compiled"][2], rtol=1e-14, atol=0)


def test_padding_gives_a_contiguous_map(rng):
    """Layouts of a picture's planes too, none missing: later layers keep the layout they meet."""
    planes = torch.rand(2, 3, 8, 16, generator=rng).permute(0, 2, 3, 1)
    padded = pad_to_multiple(planes, 8)
    assert padded.is_contiguous() and torch.equal(padded, planes)


def test_rgb_mean_is_exact_in_float64():
    assert tuple(colour_mean(torch.zeros(1, dtype=torch.float64), 3).tolist()) == RGB_MEAN


def test_conv_acts_on_the_channels_last_map(rng):
    conv = Conv3x3(3, 5)
    x = torch.rand(2, 6, 7, 3, generator=rng)
    expected = F.conv2d(x.permute(0, 3, 1, 2).contiguous(), conv.weight, conv.bias, padding=1)
    y = conv(x)
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1), atol=1e-6, rtol=0)
    assert y.is_contiguous(), "a float32 convolution must hand on a channels-last map as it lies"


def test_shifted_attention_keeps_to_its_windows(rng):
    """A pixel reaches exactly the 4x4 windows shifted by two pixels, cut at the picture's edge."""
    attention = WindowAttention(8, window_size=4, num_heads=2, shift=2)
    x = torch.rand(1, 8, 8, 8, generator=rng)
    changed = x.clone()
    changed[0, 3, 3] += 1
    moved = (attention(changed) - attention(x)).abs().sum(-1)[0] > 1e-7
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(moved, expected)
    changed = x.clone()
    changed[0, 0, 0] += 1
    moved = (attention(changed) - attention(x)).abs().sum(-1)[0] > 1e-7
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(moved, expected)


def lively(network: str) -> nn.Module:
    """In float64, with weights by which every module matters: fresh ones give the bilinear."""
    net = c2d_models.create(network).eval().double()
    for name, parameter in net.named_parameters():
        spread = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1
        nn.init.normal_(parameter, float(parameter.dim() == 1 and name.endswith("weight")), spread)
    return net


class Doubled(nn.Module):
    """Stands for an adapter: twice what the module it wraps gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize(
    ("network", "module"),
    [
        ("swinir_l_tiny", "layers.0.residual_group.blocks.0.mlp.fc2"),
        ("swinir_l_tiny", "layers.0.residual_group.blocks.1.attn.qkv"),
        ("hit_sir_tiny", "layers.0.residual_group.blocks.2.mlp.fc1"),
        ("hiet_swinir_tiny", "blocks.0.bottom.mlp.fc1"),
        ("hiet_srformer_tiny", "blocks.0.bottom.mlp.dwconv.depthwise_conv.0"),
        ("hiet_srformer_tiny", "blocks.0.bottom.mixer.proj"),
        ("hiet_srformer_tiny", "blocks.0.down.0.norm1"),
    ],
)
def test_changed_modules_are_not_passed_over(network, module):
    """A layer that runs as one operator takes weights: a module that does more must still run."""
    net = lively(network)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        plain, calls = net(x), []
        handle = net.get_submodule(module).register_forward_hook(lambda *_: calls.append(1))
        assert torch.allclose(net(x), plain, rtol=1e-9) and calls
        handle.remove()
        parent, leaf = module.rsplit(".", 1)
        setattr(net.get_submodule(parent), leaf, Doubled(net.get_submodule(module)))
        adapted = net(x)
        for p in (net.get_submodule(module).weight, net.get_submodule(module).bias):
            p *= 2  # in place: the wrapped module's, so the adapter is taken off below
        setattr(net.get_submodule(parent), leaf, net.get_submodule(module).inner)
        assert torch.allclose(adapted, net(x), rtol=1e-9)
        assert not torch.allclose(adapted, plain, rtol=1e-6)


class Counted(nn.Module):
    """Stands for a layer of someone else's: it has no attribute that ours have."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(*inputs)


@pytest.mark.parametrize(
    ("network", "module"),
    [
        ("swinir_l_tiny", "layers.0.residual_group.blocks.0.attn"),
        ("swinir_l_tiny", "layers.0.residual_group.blocks.0.mlp"),
        ("srformer_l", "layers.0.residual_group.blocks.1.attn"),
        ("srformer_l", "layers.0.residual_group.blocks.0.mlp"),
        ("hit_sir_tiny", "layers.0.residual_group.blocks.0.correlation"),
        ("hit_sir_tiny", "layers.0.residual_group.blocks.1.mlp"),
        ("hiet_swinir_tiny", "blocks.0.bottom.mixer"),
        ("hiet_srformer_tiny", "blocks.0.bottom.mlp"),
        ("hiet_srformer_tiny", "blocks.0.bottom.mlp.dwconv"),
        ("mambairv2_l", "layers.0.residual_group.layers.0.win_mhsa"),
        ("mambairv2_l", "layers.0.residual_group.layers.0.wqkv"),
    ],
)
def test_exchanged_modules_run(network, module):
    """Where a whole module is exchanged for one that gives the same, or its `forward` is."""
    net, x = lively(network), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    parent, leaf = module.rsplit(".", 1)
    ours = net.get_submodule(module)
    with torch.no_grad():
        plain, counted = net(x), Counted(ours)
        setattr(net.get_submodule(parent), leaf, counted)
        assert torch.allclose(net(x), plain, rtol=1e-9) and counted.calls
        setattr(net.get_submodule(parent), leaf, ours)
        forward, calls = ours.forward, []
        ours.forward = lambda *inputs: calls.append(1) or forward(*inputs)
        assert torch.allclose(net(x), plain, rtol=1e-9) and calls


@pytest.mark.parametrize(
    ("network", "module"),
    [
        ("swinir_l_tiny", "layers.0.residual_group.blocks.0.attn.proj"),
        ("srformer_l", "layers.0.residual_group.blocks.0.norm1"),
        ("hiet_swinir_tiny", "blocks.0.bottom.norm1"),
    ],
)
def test_modules_may_lack_a_bias(network, module):
    net, x = lively(network), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        net.get_submodule(module).bias.zero_()
        zero = net(x)
        net.get_submodule(module).bias = None
        assert torch.allclose(net(x), zero, rtol=1e-9)
