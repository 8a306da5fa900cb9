"""Names, presets and refusals of `create`."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import c2d_kernels
import c2d_models
from c2d_models.networks.registry import NETWORKS, create

NUMBERS = ("width", "levels", "heads", "attentions")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [2, 3, 4, None])
def test_a_network_says_what_it_is(name, scale):
    net = create(name, scale)
    assert (net.name, net.scale, net.training) == (name, scale, True)
    rebuilt = create(name, scale, config=json.loads(json.dumps(net.config)))
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("name", "scale", "params"),
    [
        ("hiet_swinir", 4, 753_468),
        ("hiet_swinir_tiny", 4, 126_232),
        ("hiet_swinir_tiny", None, 136_027),
        ("hiet_mambairv2", 4, 707_392),
        ("hiet_mambairv2_tiny", 4, 201_020),
        ("swinir_l", 4, 929_628),
    ],
)
def test_sizes(name, scale, params):
    assert sum(p.numel() for p in create(name, scale).parameters()) == params


@pytest.mark.parametrize(
    ("decoder", "params", "numbers"),
    [("hiif_l", 55_443, (64, 3, 4, 1)), ("hiif", 1_587_359, (256, 6, 16, 2))],
)
def test_decoders_by_name(decoder, params, numbers):
    torch.manual_seed(0)
    net = create("hiet_swinir_tiny", None, config={"decoder": decoder})
    assert sum(p.numel() for p in net.upsample.decoder.parameters()) == params
    assert tuple(net.config["decoder"][n] for n in NUMBERS) == numbers
    rebuilt = create("hiet_swinir_tiny", None, config=json.loads(json.dumps(net.config)))
    rebuilt.load_state_dict(net.state_dict())
    nn.init.normal_(rebuilt.upsample.decoder.mlps[-1].fc2.weight, std=0.1)
    rebuilt.eval()
    x = torch.rand(1, 3, 7, 9)
    with torch.no_grad():
        kernel = rebuilt(x, size=(19, 24))
        with c2d_kernels.backend("reference"):
            assert torch.allclose(kernel, rebuilt(x, size=(19, 24)), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        pytest.param(
            {"name": "hiet_swinr"},
            ValueError,
            r"there is no network 'hiet_swinr'; did you mean 'hiet_swinir'\? known are swinir_l, ",
            id="misspelt",
        ),
        pytest.param(
            {"name": "zzz"},
            ValueError,
            r"there is no network 'zzz'; known are swinir_l, ",
            id="unknown",
        ),
        pytest.param(
            {"name": "swinir_l", "scale": 2.5},
            ValueError,
            r"scale must be a whole number such as 2, 3 or 4, or None .*; got 2.5",
            id="fractional-scale",
        ),
        pytest.param(
            {"name": "swinir_l", "scale": 0}, ValueError, r"whole number .*; got 0", id="zero-scale"
        ),
        pytest.param(
            {"name": "hiet_swinir", "config": {"windows": [64, 48]}},
            ValueError,
            "powers of two; got 48",
            id="window-without-digits",
        ),
        pytest.param(
            {"name": "hiet_swinir", "scale": None, "config": {"decoder": "liif"}},
            ValueError,
            r"there is no decoder 'liif'; known are hiif, hiif_l, or give",
            id="unknown-decoder",
        ),
        pytest.param(
            {"name": "hiet_mambairv2", "config": {"routing": "best"}},
            ValueError,
            r"routing must be one of argmax, gumbel; got 'best'",
            id="routing",
        ),
        pytest.param(
            {"name": "hiet_swinir", "config": {"d_state": 8}},
            TypeError,
            r"unexpected keyword argument 'd_state'",
            id="another-network's-argument",
        ),
    ],
)
def test_refusals(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        create(**arguments)


def test_importing_the_package_is_quick():
    """`c2d --help` imports it; torch and libvips come when they are needed."""
    code = "import sys, c2d_models; assert not {'torch', 'pyvips', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_offers_its_functions_and_no_others():
    assert c2d_models.create is create
    assert set(c2d_models.__all__) <= set(dir(c2d_models))
    with pytest.raises(AttributeError, match="has no attribute 'enlarge'"):
        c2d_models.enlarge  # noqa: B018
