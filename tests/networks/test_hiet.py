"""HiET: its parts, its budget and its start."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from c2d_models import create, load
from c2d_models.images.resize import imresize
from c2d_models.images.sets import read_rgb
from c2d_models.networks.hiet import (
    AttentionMixer,
    CorrelationMixer,
    DualFeatureExtraction,
    HierarchicalEncoding,
    HiETAttentiveLayer,
    HiETLayer,
    binary_digits,
    digit_levels,
)
from c2d_models.networks.mambairv2 import AttentiveLayer, WindowAttentiveLayer

EXAMPLE = Path(__file__).parents[2] / "examples" / "photo.png"


@pytest.mark.parametrize(
    ("window_size", "position", "digits"),
    [
        pytest.param(2, 1, [1], id="2"),
        pytest.param(8, 0, [-1, -1, -1], id="8-first"),
        pytest.param(8, 4, [1, -1, -1], id="8-coarse-digit-first"),
        pytest.param(8, 6, [1, 1, -1], id="8-six"),
        pytest.param(64, 33, [1, -1, -1, -1, -1, 1], id="64"),
    ],
)
def test_digits_of_a_place_in_its_window(window_size, position, digits):
    places = torch.tensor([position, position + 3 * window_size])
    assert binary_digits(places, digit_levels(window_size)).tolist() == [digits, digits]


def test_other_windows_have_no_digits():
    with pytest.raises(ValueError, match="powers of two; got 48"):
        digit_levels(48)


def test_encoding_is_a_linear_of_the_digits():
    encoding = HierarchicalEncoding(6, 8)
    rows, columns = torch.tensor([0, 5, 9]), torch.tensor([7, 8])
    digits = binary_digits(torch.arange(8), 3)
    expected = torch.stack(
        [
            torch.stack([encoding.proj(torch.cat([digits[y % 8], digits[x % 8]])) for x in columns])
            for y in rows
        ]
    )
    by_row, by_column = encoding(binary_digits(rows, 5), binary_digits(columns, 5))
    torch.testing.assert_close(by_row[:, None] + by_column, expected, atol=1e-6, rtol=0)


def test_dual_feature_extraction_is_a_product_of_branches(rng):
    """Against 1x1 convolutions written out, as in HiT-SR."""
    dfe = DualFeatureExtraction(20)
    x = torch.randn(2, 5, 6, 20, generator=rng)
    encoding = torch.randn(5, 20, generator=rng), torch.randn(6, 20, generator=rng)
    weight, bias = dfe.entry.weight, dfe.entry.bias
    image = (x + encoding[0][:, None] + encoding[1]).permute(0, 3, 1, 2)
    local = F.leaky_relu(F.conv2d(image, weight[:4, :, None, None], bias[:4]), 0.2)
    local = F.leaky_relu(F.conv2d(local, dfe.conv.weight, dfe.conv.bias, padding=1), 0.2)
    local = F.conv2d(local, dfe.expand.weight[:, :, None, None], dfe.expand.bias)
    linear = F.conv2d(image, weight[4:, :, None, None], bias[4:])
    expected = (local * linear).permute(0, 2, 3, 1)
    torch.testing.assert_close(dfe(x, encoding), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # in one piece, where there is a kernel for it
        torch.testing.assert_close(dfe(x, encoding), expected, atol=1e-5, rtol=1e-5)


def test_mixer_is_the_correlation_beside_v(rng):
    """One window written out: v (q^T v / n)^T next to v, projected."""
    mixer = CorrelationMixer(8, 4)
    x = torch.randn(1, 4, 4, 8, generator=rng)
    place = binary_digits(torch.arange(4), 2)
    q, v = mixer.dfe(x, mixer.encoding(place, place)).reshape(16, 8).chunk(2, dim=1)
    expected = mixer.proj(torch.cat([v @ (q.t() @ v / 16).t(), v], dim=1)).reshape(1, 4, 4, 8)
    torch.testing.assert_close(mixer(x, place, place), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "bottom", "heads"),
    [
        ("hiet_swinir", HiETLayer, 8, 6),
        ("hiet_mambairv2", AttentiveLayer, 16, 4),
    ],
)
def test_blocks_are_a_u_over_window_size(name, layer, bottom, heads):
    net = create(name)
    for index, block in enumerate(net.blocks):
        layers = [*block.down, block.bottom, *block.up]
        assert [each.mixer.window_size for each in layers] == [64, 32, bottom, 32, 64]
        assert all(isinstance(each, layer) for each in layers)
        assert block.bottom.mixer.shift == (bottom // 2 if index % 2 else 0)
        assert block.bottom.mixer.num_heads == heads
    assert len(net.blocks) == 4


def test_bottom_may_correlate_too():
    net = create("hiet_swinir_tiny", config={"bottom_mixer": "correlation"})
    assert all(isinstance(block.bottom.mixer, CorrelationMixer) for block in net.blocks)
    assert [block.bottom.mixer.window_size for block in net.blocks] == [8, 8]
    assert net.config["bottom_mixer"] == "correlation"
    assert net(torch.rand(1, 3, 9, 17)).shape == (1, 3, 36, 68)
    with pytest.raises(ValueError, match="bottom_mixer is 'scan'; give 'attention' or 'corr"):
        create("hiet_swinir_tiny", config={"bottom_mixer": "scan"})


def test_attentive_layer_differs_by_its_mixer_only(rng):
    """With the same attention inside, HiET-MambaIRv2's layer is MambaIRv2's."""
    options = {"d_state": 4, "inner_rank": 6, "num_tokens": 5}
    published = WindowAttentiveLayer(12, 1, num_heads=2, window_size=4, shift=2, **options).eval()
    ours = HiETAttentiveLayer(12, AttentionMixer(12, 4, 2, 2), 1, **options).eval()
    renamed = {"wqkv": "mixer.qkv", "win_mhsa": "mixer"}
    state = {}
    for name, value in published.state_dict().items():
        head, _, rest = name.partition(".")
        state[f"{renamed.get(head, head)}.{rest}".rstrip(".")] = value
    ours.load_state_dict(state)
    ours, published = ours.double(), published.double()
    x = torch.randn(2, 8, 8, 12, dtype=torch.float64, generator=rng)
    place = torch.arange(8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, place, place), published(x), atol=1e-12, rtol=0)


def test_skips_join_equal_windows(rng):
    """With layers that only note what they get, the skips' Linears must meet their own windows."""
    block = create("hiet_swinir_tiny").blocks[0]
    seen = []

    class Note(nn.Module):
        def forward(self, x, rows, columns):
            seen.append(x)
            return x + len(seen)

    block.down = nn.ModuleList([Note(), Note()])
    block.bottom = Note()
    block.up = nn.ModuleList([Note(), Note()])
    x = torch.randn(1, 8, 8, 32, generator=rng)
    block(x, torch.arange(8), torch.arange(8))
    after_64, after_32, after_bottom = x + 1, x + 3, x + 6
    torch.testing.assert_close(seen[3], after_bottom + block.skips[0](after_32))
    torch.testing.assert_close(seen[4], seen[3] + 4 + block.skips[1](after_64))


@pytest.mark.parametrize("mode", ["discrete", "continuous"])
def test_a_new_network_is_the_bilinear_one(mode, rng):
    x = torch.rand(1, 3, 10, 13, generator=rng)
    if mode == "discrete":
        y = create("hiet_swinir_tiny", 3)(x)
    else:
        y = create("hiet_swinir_tiny", None)(x, size=(30, 39))
    bilinear = F.interpolate(x, size=(30, 39), mode="bilinear", align_corners=False)
    torch.testing.assert_close(y, bilinear, atol=1e-6, rtol=0)


def test_encoding_rolls_in_training_only():
    net, like = create("hiet_swinir_tiny"), torch.zeros(1, 3, 4, 3)
    net.train()
    rolls = {tuple(net.positions(like)[0][0].tolist()) for _ in range(20)}
    assert len(rolls) > 5
    net.eval()
    rows, columns = net.positions(like)
    assert torch.equal(rows, binary_digits(torch.arange(3), 6))
    assert torch.equal(columns, binary_digits(torch.arange(4), 6))


def test_prepare_keeps_the_state_dict():
    net = create("hiet_swinir_tiny")
    before = list(net.state_dict())
    assert list(net.prepare().state_dict()) == before


@pytest.mark.parametrize("window", [8, 32, 64])
def test_no_window_grid_is_printed(window):
    """The shipped model errs no more beside the borders of its windows than inside them.

    The same pixels are compared, as two crops of a picture bring them beside a border and inside.
    """
    photo, scale, shift = read_rgb(EXAMPLE)[None] / 255, 2, window // 2
    small = imresize(photo, 1 / scale)
    net = load("hiet_swinir_tiny_continuous").eval()

    def errors(start):
        """The result for the picture without its first `start` pixels, put back in place."""
        part = small[:, :, start:, start:]
        size = (scale * part.shape[2], scale * part.shape[3])
        with torch.no_grad():
            error = (net(part, size=size) - photo[:, :, scale * start :, scale * start :]).abs()
        return F.pad(error.mean((0, 1)), (scale * start, 0, scale * start, 0))

    def near(length):
        place = torch.arange(length) // scale
        inside = (place >= shift + 4) & (place < length // scale - 4)
        return inside & ((place % window < 2) | (place % window >= window - 2))

    border = near(photo.shape[2])[:, None] & (torch.arange(photo.shape[3]) >= scale * (shift + 4))
    border |= near(photo.shape[3]) & (torch.arange(photo.shape[2]) >= scale * (shift + 4))[:, None]
    beside, inside = errors(0)[border].mean(), errors(shift)[border].mean()
    assert 0.9 <= beside / inside <= 1.1
