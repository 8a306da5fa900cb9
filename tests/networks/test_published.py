"""The published networks against their authors' code: names, shapes, sizes and values."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from golden_weights import FOLDER, golden_state_dict, listing

from c2d_models import create
from c2d_models.networks.network import Network


class Published(NamedTuple):
    """A network of ours, its authors' listing, and its parameters at x2, x3 and x4."""

    name: str
    listed: str
    parameters: tuple[int, int, int]


PUBLISHED = [
    Published("swinir_l", "swinir_light", (910_152, 918_267, 929_628)),
    Published("srformer_l", "srformer_light", (853_272, 861_387, 872_748)),
    Published("hit_sir", "hit_sir", (772_064, 780_179, 791_540)),
    Published("hit_srf", "hit_srf", (846_944, 855_059, 866_420)),
    Published("mambairv2_l", "mambairv2_light", (774_092, 780_587, 789_680)),
]


class Golden(NamedTuple):
    """A picture that the authors' network made, and how near ours must come in float64."""

    name: str
    scale: int
    file: str
    bound: float


GOLDEN = [
    Golden("swinir_l", 4, "swinir_light_x4_17x30", 1e-12),
    Golden("srformer_l", 3, "srformer_light_x3_33x20", 1e-12),
    Golden("hit_sir", 2, "hit_sir_x2_40x72", 1e-12),
    Golden("mambairv2_l", 2, "mambairv2_light_x2_16x24", 1e-11),
]

each_published = pytest.mark.parametrize("net", PUBLISHED, ids=lambda net: net.name)
each_golden = pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)


@each_published
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_is_the_published_one(net, scale):
    published = {
        name: tuple(shape)
        for name, shape, _, kind in listing(f"{net.listed}_x{scale}")
        if kind == "parameter"
    }
    ours = create(net.name, scale).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == published


@each_published
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_parameters_as_published(net, scale):
    count = sum(p.numel() for p in create(net.name, scale).parameters())
    assert count == net.parameters[scale - 2]


def read(case: Golden) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Input and output in float64, and how far the authors' own float32 is from it."""
    with np.load(FOLDER / f"{case.file}.npz") as arrays:
        image, output = (torch.from_numpy(arrays[name]) for name in ("input", "output"))
        return image, output, float(arrays["fp32_gap"])


def golden_network(case: Golden, dtype: torch.dtype) -> Network:
    net = create(case.name, case.scale).to(dtype).eval()
    weights = golden_state_dict(case.file.rpartition("_")[0])
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return net


@each_golden
def test_golden_output_in_float64(case):
    image, expected, _ = read(case)
    with torch.no_grad():
        error = (golden_network(case, torch.float64)(image) - expected).abs().max().item()
    assert error < case.bound  # sums in another order leave 1e-14


@each_golden
def test_golden_output_in_float32(case):
    image, expected, gap = read(case)
    with torch.no_grad():
        got = golden_network(case, torch.float32)(image.float())
    # Theirs is off by the gap; sums in another order may be as far on the other side.
    assert (got - expected).abs().max().item() < 5 * gap
