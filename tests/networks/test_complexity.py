"""Multiply-adds of the networks against the authors' own networks under torch's FLOP counter."""

import pytest

from c2d_models import create
from c2d_models.networks.complexity import gmacs, parameters

AUTHORS = {  # x2, x3, x4 to 1280x720, 10^9; ours count MambaIRv2's prompts as the authors' does
    "swinir_l": (240.9, 109.2, 62.7),
    "srformer_l": (232.7, 103.3, 61.9),
    "hit_sir": (206.4, 92.5, 53.0),
    "hit_srf": (223.0, 99.9, 57.1),
    "mambairv2_l": (279.4, 123.7, 73.8),
}


@pytest.mark.parametrize(("name", "counted"), AUTHORS.items(), ids=AUTHORS)
def test_the_authors_networks(name: str, counted: tuple[float, ...]) -> None:
    # HiT's count is a little less: what windows add around a picture is not projected.
    least = 0.994 if name.startswith("hit") else 0.995
    config = {"routing": "gumbel"} if name == "mambairv2_l" else {}
    for scale, expected in zip((2, 3, 4), counted, strict=True):
        assert least <= gmacs(create(name, scale, config=config)) / expected <= 1.005


@pytest.mark.parametrize(
    ("scale", "expected"), [(2, 276.76), (3, 122.51), (4, 73.16)], ids=["x2", "x3", "x4"]
)
def test_argmax_routing_looks_prompts_up(scale: int, expected: float) -> None:
    """The authors multiply one-hot classes with all prompts."""
    assert gmacs(create("mambairv2_l", scale)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("name", "expected", "ancestor"),
    [
        pytest.param("hiet_swinir", 46.07, "hit_sir", id="hiet_swinir against HiT-SIR"),
        pytest.param("hiet_srformer", 50.43, "hit_srf", id="hiet_srformer against HiT-SRF"),
        pytest.param("hiet_mambairv2", 48.3, "mambairv2_l", id="hiet_mambairv2"),
    ],
)
def test_budget(name: str, expected: float, ancestor: str) -> None:
    """x4 to 1280x720: at most 0.89 of the ancestor's GMACs."""
    count = gmacs(create(name))
    assert count == pytest.approx(expected, abs=0.01)
    assert count <= 0.89 * gmacs(create(ancestor))
    assert count <= 0.89 * AUTHORS[ancestor][2]


def test_a_continuous_network_costs_its_decoder_more() -> None:
    body, decoder = 46.07, 51.6  # of HIIF-L alone, see test_flops.py
    assert gmacs(create("hiet_swinir", None)) == pytest.approx(body + decoder, rel=0.02)


def test_the_network_is_not_changed() -> None:
    net = create("hiet_swinir_tiny")
    before = net.state_dict()
    assert gmacs(net, 64, 64) < gmacs(net, 64, 128)
    assert net.training and net.state_dict().keys() == before.keys()
    assert next(net.parameters()).device.type == "cpu"


def test_parameters() -> None:
    assert parameters(create("swinir_l")) == 929_628


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="height and width must be at least 1, got 0 and 5"):
        gmacs(create("hiet_swinir_tiny"), 0, 5)
