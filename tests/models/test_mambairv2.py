"""MambaIRv2-L against its authors' network; its routing, sorting and prompts."""

import numpy as np
import pytest
import torch
from golden_weights import FOLDER, golden_state_dict, listing

from c2d_models import create


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_is_the_published_one(scale):
    published = {
        name: tuple(shape)
        for name, shape, _, kind in listing(f"mambairv2_light_x{scale}")
        if kind == "parameter"
    }
    ours = create("mambairv2_l", scale).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == published


@pytest.mark.parametrize(("scale", "params"), [(2, 774_092), (3, 780_587), (4, 789_680)])
def test_parameters_as_published(scale, params):
    assert sum(p.numel() for p in create("mambairv2_l", scale).parameters()) == params


def golden_network(dtype: torch.dtype) -> torch.nn.Module:
    net = create("mambairv2_l", 2).to(dtype).eval()
    weights = golden_state_dict("mambairv2_light_x2")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return net


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "mambairv2_light_x2_16x24.npz") as case:
        image, output = (torch.from_numpy(case[name]) for name in ("input", "output"))
        return image, output, float(case["fp32_gap"])


def test_golden_output_in_float64(golden):
    image, expected, _ = golden
    with torch.no_grad():
        error = (golden_network(torch.float64)(image) - expected).abs().max().item()
    assert error < 1e-11


def test_golden_output_in_float32(golden):
    image, expected, gap = golden
    with torch.no_grad():
        error = (golden_network(torch.float32)(image.float()) - expected).abs().max().item()
    assert error < 5 * gap


@pytest.mark.parametrize(
    ("scale", "published", "ours"), [(2, 279.4, 276.76), (3, 123.7, 122.51), (4, 73.8, 73.16)]
)
def test_gmacs(scale, published, ours, gmacs):
    """The authors multiply one-hot classes with all prompts; argmax routing looks prompts up."""
    sampled = gmacs("mambairv2_l", scale, routing="gumbel")
    assert sampled == pytest.approx(published, rel=0.002)
    looked_up = gmacs("mambairv2_l", scale)
    assert looked_up == pytest.approx(ours, abs=0.01)
