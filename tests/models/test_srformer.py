"""SRFormer-L against its authors' network: names, shapes and values."""

import numpy as np
import pytest
import torch
from golden_weights import FOLDER, golden_state_dict, listing
from torch.nn import functional as F

from c2d_models import create
from c2d_models.layers import ConvFFN


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_is_the_published_one(scale):
    published = {
        name: tuple(shape)
        for name, shape, _, kind in listing(f"srformer_light_x{scale}")
        if kind == "parameter"
    }
    ours = create("srformer_l", scale).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == published


@pytest.mark.parametrize(("scale", "params"), [(2, 853_272), (3, 861_387), (4, 872_748)])
def test_parameters_as_published(scale, params):
    assert sum(p.numel() for p in create("srformer_l", scale).parameters()) == params


def golden_network(dtype: torch.dtype) -> torch.nn.Module:
    net = create("srformer_l", 3).to(dtype).eval()
    weights = golden_state_dict("srformer_light_x3")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return net


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "srformer_light_x3_33x20.npz") as case:
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
