"""Values that a prepared network keeps, and changes that make it look again."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import c2d_kernels
from c2d_kernels.frozen import Guard
from c2d_models import create
from c2d_models.networks.preparable import Preparable

NETWORKS = [
    pytest.param("swinir_l_tiny", {}, id="swinir"),
    pytest.param("srformer_l", {"dim": 24, "depths": [2]}, id="srformer"),
    pytest.param("hit_sir_tiny", {"groups": 1, "windows": [4, 8]}, id="hit_sir"),
    pytest.param("hiet_swinir_tiny", {"blocks": 1}, id="hiet_swinir"),
    pytest.param("hiet_srformer_tiny", {"blocks": 1}, id="hiet_srformer"),
    pytest.param("mambairv2_l", {"dim": 16, "depths": [2]}, id="mambairv2"),
]


def small(name: str, config: dict) -> nn.Module:
    """A network whose every weight shows in its output."""
    net = create(name, 2, config=config).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64], ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_prepared_is_the_same_picture(name, config, dtype, rng):
    """The first call, the second, which takes the kept road, and one of another size."""
    net = small(name, config).to(dtype)
    sizes = [(19, 22), (19, 22), (8, 41), (19, 22)]
    images = [torch.rand(1, 3, *size, generator=rng).to(dtype) for size in sizes]
    expected = [run(net, image) for image in images]
    net.prepare()
    for image, picture in zip(images, expected, strict=True):
        assert torch.equal(run(net, image), picture)


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_prepared_is_the_same_picture_under_autocast(name, config, rng):
    """Values kept under autocast do not serve float32, nor the reverse."""
    net, image = small(name, config), torch.rand(1, 3, 13, 17, generator=rng)
    exact = run(net, image)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(net, image)
        net.prepare()
        assert torch.equal(run(net, image), rounded)
        assert torch.equal(run(net, image), rounded)
    assert torch.equal(run(net, image), exact)
    assert torch.equal(run(net, image), exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(net, image), rounded)


def changed(net: nn.Module, how: str, rng: torch.Generator) -> None:
    """Change every Linear of a network in one of the ways there are."""
    state = {
        name: torch.randn(value.shape, generator=rng) for name, value in net.named_parameters()
    }
    state = {name: value.to(net.get_parameter(name).dtype) for name, value in state.items()}
    if how == "load_state_dict":
        net.load_state_dict({name: 0.1 * value for name, value in state.items()})
    elif how == "in place":
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
    elif how == "exchanged parameter":
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(1.5 * module.weight.detach())
    elif how == "double":
        net.double()
    elif how == "hook":
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, args, output: 1.5 * output)
    elif how == "parametrization":
        for module in list(net.modules()):
            if type(module) is nn.Linear:
                parametrizations.weight_norm(module)
                module.parametrizations.weight.original0.data *= 1.5
    elif how == "exchanged module":
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if name in ("fc1", "fc2", "qkv", "kv", "wqkv", "entry", "expand"):
                    setattr(module, name, nn.Sequential(child, nn.Tanh()))


CHANGES = [
    "load_state_dict",
    "in place",
    "exchanged parameter",
    "double",
    "hook",
    "parametrization",
    "exchanged module",
]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_a_change_is_noticed(name, config, how, rng):
    net = small(name, config)
    plain, image = copy.deepcopy(net), torch.rand(1, 3, 13, 17, generator=rng)
    net.prepare()
    before = run(net, image)
    state = rng.get_state()
    changed(net, how, rng)
    rng.set_state(state)
    changed(plain, how, rng)
    image = image.to(next(net.parameters()).dtype)
    expected = run(plain, image)
    if how != "double":
        assert not torch.equal(expected, before), "the change must show"
    assert torch.equal(run(net, image), expected)
    assert torch.equal(run(net, image), expected)  # what was kept anew


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_functional_call_takes_its_own_weights(name, config, rng):
    net = small(name, config).prepare()
    image = torch.rand(1, 3, 13, 17, generator=rng)
    kept = run(net, image)
    weights = {name: 1.2 * value.detach() for name, value in net.named_parameters()}
    with torch.no_grad():
        other = torch.func.functional_call(net, weights, image)
    expected = copy.deepcopy(net).train().eval()
    expected.load_state_dict(weights)
    assert torch.equal(other, run(expected, image))
    assert torch.equal(run(net, image), kept)


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_gradients_flow_through_a_prepared_network(name, config, rng):
    net = small(name, config)
    image = torch.rand(1, 3, 13, 17, generator=rng)
    net(image).square().mean().backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.prepare()
    run(net, image)  # what is kept now must not stand in the way
    net.zero_grad()
    net(image).square().mean().backward()
    for parameter, grad in zip(net.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (grad is None)  # an argmax gives its route no gradient
        assert grad is None or torch.equal(parameter.grad, grad)


def test_copies_keep_their_own(rng):
    net, image = small("hiet_swinir_tiny", {"blocks": 1}).prepare(), torch.rand(1, 3, 9, 9)
    picture = run(net, image)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(run(again, image), picture)
        with torch.no_grad():
            again.conv_first.weight.mul_(2)
            again.blocks[0].bottom.mlp.fc1.weight.mul_(2)
        assert not torch.equal(run(again, image), picture)
        assert torch.equal(run(net, image), picture)


def test_training_keeps_nothing(rng):
    net = small("hit_sir_tiny", {"groups": 1, "windows": [4, 8]}).prepare()
    run(net, torch.rand(1, 3, 9, 9, generator=rng))
    kept = [module for module in net.modules() if isinstance(module, Preparable)]
    assert kept
    assert all(module.kept is not None for module in kept)
    assert all(module.kept is not None for module in kept if net.eval())
    net.train()
    assert all(module.kept is None for module in kept)


def test_the_reference_is_not_passed_by(rng):
    """A backend that is asked for runs, whatever was kept."""
    net, image = small("swinir_l_tiny", {}).prepare(), torch.rand(1, 3, 9, 9, generator=rng)
    run(net, image)
    with c2d_kernels.backend("reference"):
        reference = run(net, image)
    with c2d_kernels.backend("reference"):
        expected = run(copy.deepcopy(net).train().eval(), image)
    assert torch.equal(reference, expected)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: m.register_forward_pre_hook(lambda *_: None), id="pre-hook"),
        pytest.param(lambda m: m.register_full_backward_hook(lambda *_: None), id="backward hook"),
        pytest.param(lambda m: setattr(m, "forward", lambda x: x), id="forward of its own"),
        pytest.param(lambda m: m.register_buffer("more", torch.ones(1)), id="buffer"),
        pytest.param(lambda m: setattr(m, "more", nn.Identity()), id="child"),
        pytest.param(lambda m: setattr(m, "bias", None), id="no bias"),
        pytest.param(lambda m: m.bias.detach().add_(1), id="written through detach"),
        pytest.param(lambda m: setattr(m.bias, "data", torch.ones(3)), id="data set"),
        pytest.param(lambda m: m.half(), id="dtype"),
    ],
)
def test_a_guard_notices(change):
    module = nn.Linear(2, 3)
    guard = Guard(module)
    assert guard.holds(module)
    assert not guard.holds(nn.Linear(2, 3))
    assert not guard.holds()
    change(module)
    assert not guard.holds(module)
