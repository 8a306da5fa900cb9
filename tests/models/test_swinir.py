"""SwinIR-L against its authors' network: names, shapes and values."""

import numpy as np
import pytest
import torch
from golden_weights import FOLDER, golden_state_dict, listing

from c2d_models import create


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_is_the_published_one(scale):
    published = {
        name: tuple(shape)
        for name, shape, _, kind in listing(f"swinir_light_x{scale}")
        if kind == "parameter"
    }
    ours = {
        name: tuple(value.shape) for name, value in create("swinir_l", scale).state_dict().items()
    }
    assert ours == published


@pytest.mark.parametrize(("scale", "params"), [(2, 910_152), (3, 918_267), (4, 929_628)])
def test_parameters_as_published(scale, params):
    assert sum(p.numel() for p in create("swinir_l", scale).parameters()) == params


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "swinir_light_x4_17x30.npz") as case:
        arrays = {name: torch.from_numpy(case[name]) for name in ("input", "output")}
        gap = float(case["fp32_gap"])
    net = create("swinir_l", 4).double().eval()
    weights = golden_state_dict("swinir_light_x4")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return net, arrays["input"], arrays["output"], gap


def test_golden_output_in_float64(golden):
    net, image, expected, _ = golden
    with torch.no_grad():
        error = (net(image) - expected).abs().max().item()
    assert error < 1e-12  # the issue asks for 1e-6; another order of the same sums leaves 1e-14


def test_golden_output_in_float32(golden):
    net, image, expected, gap = golden
    net = create("swinir_l", 4).eval()
    weights = golden_state_dict("swinir_light_x4")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        error = (net(image.float()) - expected).abs().max().item()
    # The authors' float32 is off by `gap`; sums in another order may be as far on the other side.
    assert error < 5 * gap


def test_shift_alternates():
    net = create("swinir_l_tiny", 2)
    assert [[b.attn.shift for b in layer.residual_group.blocks] for layer in net.layers] == [
        [0, 4],
        [0, 4],
    ]
