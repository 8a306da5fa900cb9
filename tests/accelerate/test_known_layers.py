"""Each kind of layer that is known, against a module of our own with the published structure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import published_hit as hit
import published_layers as layers
import published_mambairv2 as mambairv2
import published_rectangles as rectangles
import published_swin2sr as swin2sr
import pytest
import torch
from torch import nn

from c2d_kernels import accelerate

SIZE = (16, 24)


@dataclass
class Family:
    """Two layers of a network, and what it hands to each of them."""

    make: Callable[[], list[nn.Module]]
    given: Callable[[nn.Module], tuple[Any, ...]] = lambda layer: (SIZE,)
    channels: int = 24
    replaced: int = 2
    double: bool = True
    """Whether the layer itself takes float64."""


def shifted(kind: type[nn.Module], shift: int = 2, **options: Any) -> Callable[[], list[nn.Module]]:
    return lambda: [kind(**options), kind(shift=shift, **options)]


def index_and_mask(layer: nn.Module) -> tuple[Any, ...]:
    return layers.offsets_index(4), layers.shift_mask(*SIZE, 4, 2)


def params(layer: nn.Module) -> tuple[Any, ...]:
    index, mask = index_and_mask(layer)
    return SIZE, {"rpi_sa": index, "attn_mask": mask}


def with_window(layer: nn.Module) -> tuple[Any, ...]:
    return SIZE, layer.window_size


def hit_layers(**options: Any) -> Callable[[], list[nn.Module]]:
    kind = hit.HierarchicalTransformerBlock
    return lambda: [kind(window=4, **options), kind(window=8, **options)]


FAMILIES = {
    "SwinIR": Family(shifted(layers.SwinTransformerBlock)),
    "SwinIR, window 7": Family(
        lambda: [layers.SwinTransformerBlock(window=7, shift=3, size=(14, 21))],
        lambda layer: ((14, 21),),
        replaced=1,
    ),
    "SRFormer": Family(shifted(layers.PSA_Block, 4)),
    "HAT": Family(shifted(layers.HAB), lambda layer: (SIZE, *index_and_mask(layer))),
    "HAT, overlapping": Family(
        lambda: [rectangles.OCAB(), rectangles.OCAB(ratio=1.0)],
        lambda layer: (
            SIZE,
            rectangles.overlapping_index(layer.window_size, layer.overlap_win_size),
        ),
    ),
    "DAT": Family(shifted(rectangles.Adaptive_Spatial_Attention, (1, 2)), lambda layer: (*SIZE,)),
    "DAT, whole": Family(shifted(rectangles.DATB, (1, 2)), replaced=4),
    "DAT, padded": Family(
        shifted(rectangles.Adaptive_Spatial_Attention, (1, 2)), lambda layer: (10, 13)
    ),
    "Swin2SR": Family(shifted(swin2sr.SwinTransformerBlock)),
    "Hugging Face's Swin2SR": Family(shifted(swin2sr.Swin2SRLayer)),
    "HiT-SIR": Family(hit_layers(), with_window, 48),
    "HiT-SRF": Family(hit_layers(convolutional=True), with_window, 48),
    "HiT-SNG": Family(hit_layers(context=True), with_window, 48),
    "MambaIRv2, light": Family(shifted(mambairv2.AttentiveLayer), params, replaced=4),
    "MambaIRv2, base": Family(
        shifted(mambairv2.AttentiveLayer, gated=False, ratio=2), params, replaced=4
    ),
}


class Net(nn.Module):
    """The layers in turn."""

    def __init__(self, family: Family):
        super().__init__()
        self.layers = nn.ModuleList(family.make())
        self.family = family

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, *self.family.given(layer))
            x = x[0] if isinstance(x, tuple) else x
        return x


def network(family: Family) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(2)
    net = layers.randomised(Net(family)).eval()
    given = family.given(net.layers[0])
    size = given[0] if isinstance(given[0], tuple) else given[:2]
    return net, torch.randn(2, size[0] * size[1], family.channels)


def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """MambaIRv2 draws the classes of its tokens."""
    torch.manual_seed(3)
    return net(x)


every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@every_family
def test_outputs_and_gradients(family: Family) -> None:
    net, x = network(family)
    plain = copy.deepcopy(net)
    report = accelerate(net)
    assert len(report.replaced) == family.replaced, str(report)
    assert not report.left
    x.requires_grad_()
    expected, found = run(plain, x), run(net, x)
    bound = 1e-5 * (expected - x).abs().max()
    assert (found - expected).abs().max() <= bound
    assert not torch.equal(found, expected), "no layer ran on the operators"
    wanted = torch.autograd.grad(expected.square().sum(), [x, *plain.parameters()])
    grads = torch.autograd.grad(found.square().sum(), [x, *net.parameters()])
    # A shift of all scores has no effect: its gradient, of biases of biases, is noise in both.
    least = 1e-3 * max(theirs.abs().max() for theirs in wanted)
    for mine, theirs in zip(grads, wanted, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp(min=least)
    with torch.no_grad():
        assert (run(net, x) - expected).abs().max() <= bound
    report.revert()
    assert torch.equal(run(net, x), expected)


@every_family
def test_float64(family: Family) -> None:
    net, x = network(family)
    net, x = net.double(), x.double()
    expected = run(net, x)
    accelerate(net)
    with torch.no_grad():
        assert (run(net, x) - expected).abs().max() <= 1e-12 * expected.abs().max()


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(family: Family, dtype: torch.dtype) -> None:
    """No further from float32 than the layer as written, under the same autocast."""
    net, x = network(family)
    exact = run(net, x)

    def error() -> torch.Tensor:
        with torch.autocast("cpu", dtype), torch.no_grad():
            return (run(net, x).float() - exact).square().mean().sqrt()

    as_written = error()
    accelerate(net)
    assert error() <= 1.2 * as_written


@pytest.mark.parametrize("name", [name for name in FAMILIES if "MambaIRv2" not in name])
def test_half(name: str) -> None:
    """But MambaIRv2, whose scan is in float32, which its own norm of half weights refuses."""
    net, x = network(FAMILIES[name])
    exact = run(net, x)
    accelerate(net)
    net, x = net.bfloat16(), x.bfloat16()
    found = run(net, x).float()
    assert (found - exact).abs().max() <= 0.1 * exact.abs().max()


@every_family
def test_compile(family: Family) -> None:
    net, x = network(family)
    accelerate(net)
    expected = run(net, x)
    torch._dynamo.reset()
    found = run(torch.compile(net, backend="aot_eager"), x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_export(name: str) -> None:
    net, x = network(FAMILIES[name])
    accelerate(net)
    expected = run(net, x)
    program = torch.export.export(net, (x,))
    assert (run(program.module(), x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    operators = [node.target for node in program.graph.nodes if "c2d" in str(node.target)]
    # HAT's layer is given its index and mask, whose values a graph does not show.
    assert operators or name == "HAT"
