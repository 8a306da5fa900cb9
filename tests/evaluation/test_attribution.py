"""Local attribution maps: where they may not be zero, what they sum up to, how far they spread."""

import math

import pytest
import torch
from torch import nn

from c2d_models import create
from c2d_models.evaluation.attribution import blur, diffusion_index, edges, local_attribution


class Plain(nn.Module):
    """One 3x3 convolution, pixel shuffle: each output pixel sees 3x3 input pixels."""

    def __init__(self, scale=2):
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.conv = nn.Conv2d(3, 3 * scale**2, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.conv(x), self.scale)


@pytest.fixture
def lr():
    return torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1))


def spread(values):
    """The definition: mean of all |v_i - v_j| over twice the mean."""
    values = values.abs().double().flatten()
    gini = (values[:, None] - values[None]).abs().mean() / (2 * values.mean())
    return 100 * (1 - gini.item())


one = torch.zeros(6, 7)
one[2, 3] = -0.4
half = torch.cat([torch.zeros(30), torch.ones(30)])
MAPS = [
    pytest.param(torch.full((6, 7), 0.3), 100, id="uniform"),
    pytest.param(one, 100 / 42, id="one-pixel"),
    pytest.param(half, 50, id="half"),
    pytest.param(torch.randn(9, 8, generator=torch.Generator().manual_seed(2)), None, id="noise"),
]


@pytest.mark.parametrize(("attribution", "expected"), MAPS)
def test_diffusion_index(attribution, expected):
    index = diffusion_index(attribution)
    assert index == pytest.approx(spread(attribution), abs=1e-9)
    assert expected is None or index == pytest.approx(expected, abs=1e-5)
    assert diffusion_index(attribution * -7) == pytest.approx(index, abs=1e-5)


def test_an_empty_map_has_no_index():
    assert math.isnan(diffusion_index(torch.zeros(4, 4)))


@pytest.mark.parametrize(
    ("window", "rows", "columns"),
    [
        pytest.param((16, 20, 8), (7, 13), (9, 15), id="inside"),
        pytest.param((0, 0, 6), (0, 4), (0, 4), id="corner"),
        pytest.param((17, 21, 3), (7, 11), (9, 13), id="odd"),
    ],
)
def test_nothing_outside_the_receptive_field(lr, window, rows, columns):
    attribution = local_attribution(Plain(), lr, window, steps=4)
    assert attribution.shape == (20, 24)
    inside = torch.zeros(20, 24, dtype=torch.bool)
    inside[slice(*rows), slice(*columns)] = True
    assert (attribution[~inside] == 0).all()
    assert (attribution[inside] != 0).all()


NETS = [
    pytest.param(Plain, None, (8, 8, 12), id="convolution"),
    pytest.param(lambda: create("hiet_swinir_tiny", None), 2.5, (8, 8, 16), id="continuous"),
]


@pytest.mark.parametrize(("make", "scale", "window"), NETS)
def test_the_map_sums_up_to_what_the_blur_took(lr, make, scale, window):
    torch.manual_seed(0)
    net = make().eval()
    top, left, size = window

    def detected(image):
        with torch.no_grad():
            sr = net(image[None]) if scale is None else net(image[None], size=(50, 60))
        return edges(sr[0, :, top : top + size, left : left + size]).item()

    expected = detected(lr) - detected(blur(lr, 1.2))
    total = local_attribution(net, lr, window, steps=24, scale=scale).sum().item()
    assert expected > 1
    assert total == pytest.approx(expected, rel=0.02)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_blur_keeps_the_mean_and_has_its_width():
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1.0
    spot = blur(point, 2.0)[0]
    x = torch.arange(41.0) - 20
    assert spot.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (spot.sum(0) * x**2).sum().sqrt().item() == pytest.approx(2.0, abs=0.01)
    torch.testing.assert_close(blur(torch.full((3, 5, 4), 0.7), 1.2), torch.full((3, 5, 4), 0.7))
    assert blur(point, 0.0) is point


def test_edges_are_lengths_of_gradients():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    assert edges((3 * x + 4 * y)[None]).item() == pytest.approx(5.0 * 4 * 5)
    assert edges(torch.zeros(3, 5, 6)).item() < 1e-3


REFUSALS = [
    pytest.param({"window": (0, 0, 1)}, "window is 1x1 at", id="size-1"),
    pytest.param({"window": (33, 0, 8)}, r"at \(0, 33\) of a picture of 48x40; give", id="below"),
    pytest.param({"window": (0, -1, 8)}, r"at \(-1, 0\)", id="left"),
    pytest.param({"steps": 0}, "steps is 0 and sigma 1.2; give positive", id="steps"),
    pytest.param({"sigma": 0.0}, "steps is 50 and sigma 0; give", id="sigma"),
    pytest.param({"net": Plain(2), "scale": None}, "needs a scale", id="scale"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSALS)
def test_refusals(lr, arguments, sentence):
    arguments = {"net": Plain(), "window": (0, 0, 8), **arguments}
    if "scale" in arguments:
        arguments["net"].scale = None
    with pytest.raises(ValueError, match=sentence):
        local_attribution(arguments.pop("net"), lr, **arguments)
