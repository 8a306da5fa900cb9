"""Questions about a layer of somebody else's network: each ends in an answer or a refusal.

A class name says little: four authors call four formulas `SwinTransformerBlock`. What counts is
which modules a layer has, of which shapes, and what its index buffers hold.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAVES = (
    nn.Linear,
    nn.LayerNorm,
    nn.Conv2d,
    nn.GELU,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Softmax,
    nn.LogSoftmax,
    nn.SiLU,
    nn.Sigmoid,
    nn.Identity,
    nn.Dropout,
    nn.Embedding,
    nn.Unfold,
)
_DROP_PATH = ("DropPath", "Swin2SRDropPath")  # stochastic depth, which many packages define
_NUMBERS = (
    "H_sp",
    "W_sp",
    "approximate",
    "base_win_size",
    "conv_scale",
    "eps",
    "negative_slope",
    "num_heads",
    "overlap_win_size",
    "scale",
    "shift_size",
    "split_size",
    "window_size",
)
"""Attributes that a recipe reads: a call of a layer where one has changed runs as written."""


class Unlike(Exception):
    """The layer is not what its name says; the sentence tells where."""


def need(holds: bool, otherwise: str) -> None:
    """Refuse the layer with this sentence unless it holds."""
    if not holds:
        raise Unlike(otherwise)


def part(module: nn.Module, path: str) -> nn.Module:
    """The module at this path, such as "attn.qkv"."""
    found: nn.Module | None = module
    for name in path.split("."):
        found = None if found is None else found._modules.get(name)
    if found is None:
        raise Unlike(f"it has no {path}")
    return found


def value(module: nn.Module, name: str) -> object:
    """An attribute that the recipe reads."""
    if not hasattr(module, name):
        raise Unlike(f"its {type(module).__name__} has no {name}")
    return getattr(module, name)


def whole(module: nn.Module, name: str) -> int:
    """An attribute that is one whole number."""
    number = value(module, name)
    if isinstance(number, bool) or not isinstance(number, int):
        raise Unlike(f"{name} is {number!r}, not a whole number")
    return number


def side(module: nn.Module, name: str) -> int:
    """The side of a square window, given as one number or two."""
    size = value(module, name)
    sides = tuple(size) if isinstance(size, (tuple, list, torch.Size)) else (size, size)
    need(len(sides) == 2 and sides[0] == sides[1], f"{name} is {size}, not square")
    if not isinstance(sides[0], int):
        raise Unlike(f"{name} is {size!r}, not whole numbers")
    return sides[0]


def linear(layer: nn.Module, path: str, inputs: int | None, outputs: int | None) -> nn.Linear:
    """A plain Linear of these widths, None standing for any."""
    module = part(layer, path)
    if type(module) is not nn.Linear:
        raise Unlike(f"{path} is a {type(module).__name__}, not a Linear")
    widths = (module.in_features, module.out_features)
    fits = inputs in (None, widths[0]) and outputs in (None, widths[1])
    need(fits, f"{path} maps {widths[0]} channels to {widths[1]}, not {inputs} to {outputs}")
    return module


def norm(layer: nn.Module, path: str, channels: int) -> nn.LayerNorm:
    """A plain LayerNorm over the channels, with a weight and a bias."""
    module = part(layer, path)
    if type(module) is not nn.LayerNorm:
        raise Unlike(f"{path} is a {type(module).__name__}, not a LayerNorm")
    plain = module.normalized_shape == (channels,) and module.bias is not None
    need(plain, f"{path} is {module}, not over {channels} channels with a weight and a bias")
    return module


def same_eps(*norms: nn.LayerNorm) -> None:
    """The operators take one eps for all norms of a layer."""
    values = sorted({module.eps for module in norms})
    need(len(values) == 1, f"its norms have different eps, {values}")


def gelu(layer: nn.Module, path: str) -> None:
    """The exact GELU, not its tanh approximation."""
    module = part(layer, path)
    need(_is_gelu(module), f"{path} is {module}, not the exact GELU")


def leaky(layer: nn.Module, path: str, slope: float) -> None:
    """A LeakyReLU of this negative slope."""
    module = part(layer, path)
    same = type(module) is nn.LeakyReLU and module.negative_slope == slope
    need(same, f"{path} is {module}, not a LeakyReLU of {slope}")


def mlp(layer: nn.Module, channels: int) -> None:
    """`mlp`: Linear, exact GELU, Linear."""
    hidden = linear(layer, "mlp.fc1", channels, None).out_features
    linear(layer, "mlp.fc2", hidden, channels)
    gelu(layer, "mlp.act")


def conv_mlp(layer: nn.Module, name: str, channels: int) -> None:
    """SRFormer's ConvFFN: an MLP whose hidden map has a depthwise 5x5 branch."""
    hidden = linear(layer, f"{name}.fc1", channels, None).out_features
    linear(layer, f"{name}.fc2", hidden, channels)
    convolution(layer, f"{name}.dwconv.depthwise_conv.0", 5, hidden)
    for activation in ("act", "dwconv.depthwise_conv.1"):
        gelu(layer, f"{name}.{activation}")


def gated_mlp(layer: nn.Module, name: str, channels: int, side: int) -> nn.LayerNorm:
    """A gated MLP: Linear, GELU, one half times a convolution of the other's norm, Linear.

    The convolution is depthwise. Returns the gate's norm.
    """
    hidden = linear(layer, f"{name}.fc1", channels, None).out_features
    gelu(layer, f"{name}.act")
    only_children(layer, f"{name}.sg", "norm", "conv")
    convolution(layer, f"{name}.sg.conv", side, hidden // 2)
    linear(layer, f"{name}.fc2", hidden // 2, channels)
    return norm(layer, f"{name}.sg.norm", hidden // 2)


def convolution(layer: nn.Module, path: str, kernel: int, groups: int) -> nn.Conv2d:
    """A Conv2d with a bias that keeps height and width."""
    module = part(layer, path)
    if type(module) is not nn.Conv2d:
        raise Unlike(f"{path} is a {type(module).__name__}, not a Conv2d")
    plain = (
        module.kernel_size == (kernel, kernel)
        and module.padding in ((kernel // 2, kernel // 2), "same")
        and module.stride == module.dilation == (1, 1)
        and module.groups == groups
        and module.padding_mode == "zeros"
        and module.bias is not None
    )
    need(plain, f"{path} is {module}, not a {kernel}x{kernel} convolution in {groups} groups")
    return module


def arguments(layer: nn.Module, *names: str) -> None:
    """The forward takes these arguments."""
    taken = list(inspect.signature(type(layer).forward).parameters)[1:]
    need(taken == list(names), f"its forward takes ({', '.join(taken)}), not ({', '.join(names)})")


def pointwise(layer: nn.Module, path: str, inputs: int, outputs: int | None) -> nn.Conv2d:
    """A 1x1 convolution of these widths, None standing for any."""
    module = convolution(layer, path, 1, 1)
    widths = (module.in_channels, module.out_channels)
    fits = widths[0] == inputs and outputs in (None, widths[1])
    need(fits, f"{path} maps {widths[0]} channels to {widths[1]}, not {inputs} to {outputs}")
    return module


def only_children(layer: nn.Module, path: str, *names: str) -> None:
    """The module at this path has no child but these: another one might do anything."""
    module = part(layer, path) if path else layer
    more = [name for name in module._modules if name not in names]
    need(not more, f"it has a part {path + '.' if path else ''}{more[0] if more else ''}")


def bias_table(module: nn.Module, keys: int, heads: int) -> None:
    """relative_position_bias_table for windows of keys x keys keys, a row per offset."""
    table = value(module, "relative_position_bias_table")
    rows = (2 * keys - 1) ** 2
    if not isinstance(table, Tensor) or tuple(table.shape) != (rows, heads):
        found = tuple(getattr(table, "shape", ()))
        raise Unlike(f"its bias table is {found}, not {(rows, heads)}")


def tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer."""
    found = getattr(module, name, None)
    if not isinstance(found, Tensor):
        raise Unlike(f"its {name} is not a tensor")
    return found


def parameter(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """A parameter of this shape."""
    found = module._parameters.get(name)
    shapes = None if found is None else tuple(found.shape)
    need(shapes == shape, f"its {name} is {shapes}, not {shape}")


def head_scale(module: nn.Module, channels: int, heads: int) -> None:
    """q k^T is scaled by head_dim^-0.5, as in the operators of whole layers."""
    scale = value(module, "scale")
    expected = (channels // heads) ** -0.5
    same = isinstance(scale, float) and math.isclose(scale, expected, rel_tol=1e-6)
    need(same, f"its attention is scaled by {scale}, not by head_dim^-0.5 = {expected:.6g}")


def position_index(window: int, cell: int = 1) -> Tensor:
    """Where Swin's table holds query (y, x)'s bias to key (Y, X): (w^2, (w / cell)^2).

    With cell 2, SRFormer's: a key is a cell of 2x2 tokens.
    """
    keys = window // cell
    offsets = torch.arange(window)[:, None] // cell - torch.arange(keys) + keys - 1
    index = offsets[:, None, :, None] * (2 * keys - 1) + offsets[None, :, None, :]
    return index.reshape(window * window, keys * keys)


def shift_mask(height: int, width: int, window: int, shift: int, cell: int = 1) -> Tensor:
    """Swin's mask of a shifted map, (windows, w^2, w^2): -100 where the roll made neighbours.

    With cell 2, SRFormer's (windows, w^2, (w / 2)^2): a key is a cell of 2x2 tokens.
    """

    def bands(length: int) -> Tensor:
        place = torch.arange(length)
        return (place >= length - window).long() + (place >= length - shift).long()

    regions = bands(height)[:, None] * 3 + bands(width)
    regions = regions.reshape(height // window, window, width // window, window)
    regions = regions.transpose(1, 2).flatten(0, 1)
    queries, keys = regions.flatten(1), regions[:, ::cell, ::cell].flatten(1)
    return (queries[:, :, None] != keys[:, None, :]) * -100.0


def stored_mask(layer: nn.Module, window: int, shift: int, cell: int = 1) -> None:
    """The mask that a layer keeps for its training size: no trial on another size sees it."""
    mask = getattr(layer, "attn_mask", None)
    if mask is not None:
        size = value(layer, "input_resolution")
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise Unlike(f"input_resolution is {size!r}, not (height, width)")
        same_values("attn_mask", mask, shift_mask(size[0], size[1], window, shift, cell))


def same_values(name: str, found: object, expected: Tensor) -> None:
    """A buffer of indices or of a mask holds what the operator computes from coordinates."""
    if isinstance(found, Tensor) and found.is_meta:
        raise Unlike(f"its {name} is on the meta device: load its weights first")
    same = (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and torch.equal(found.cpu().to(expected.dtype), expected)
    )
    need(same, f"its {name} holds other values than Swin's")


def no_surprises(layer: nn.Module, called: tuple[str, ...]) -> None:
    """Each module in it is of a known kind, and none had a method exchanged.

    Args:
        called: children that a recipe calls as they are, whatever they do.
    """
    for path, module in within(layer, called):
        if not module._modules:
            known = type(module) in _LEAVES or _is_drop_path(module) or _passes_on(module)
            known = known or _is_gelu(module)
            known = known or bool(module._parameters)  # its own forward is compared in the trial
            need(known, f"its part {path} is an unknown {type(module).__name__}")
        for name in vars(module):
            if not name.startswith("_") and callable(getattr(type(module), name, None)):
                raise Unlike(f"the method {name} of {path or 'the layer'} was exchanged")


def within(layer: nn.Module, called: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The layer and the modules under it, but for what is in the children `called`."""
    for path, module in layer.named_modules():
        if not any(path == outer or path.startswith(f"{outer}.") for outer in called):
            yield path, module


def _is_drop_path(module: nn.Module) -> bool:
    return type(module).__name__ in _DROP_PATH


def _is_gelu(module: nn.Module) -> bool:
    """Whether a module is the exact GELU, of torch or of a package with its own."""
    if type(module) is nn.GELU:
        return module.approximate == "none"
    if module._modules or module._parameters or module._buffers:
        return False
    x = torch.linspace(-4, 4, 33)
    try:
        return torch.allclose(type(module).forward(module, x), F.gelu(x), rtol=0, atol=1e-6)
    except Exception:  # whatever somebody else's forward raises
        return False


def _passes_on(module: nn.Module) -> bool:
    """Whether a module without state returns what it is given, in training as well."""
    if module._parameters or module._buffers:
        return False
    x, training = torch.randn(2, 3, 4), module.training
    try:
        for mode in (True, False):
            module.training = mode
            if type(module).forward(module, x) is not x:
                return False
        return True
    except Exception:  # whatever somebody else's forward raises
        return False
    finally:
        module.training = training


def dropout_rate(module: nn.Module) -> float:
    """How often a Dropout or a DropPath drops something in training; 0 for other modules."""
    if type(module) is nn.Dropout:
        return module.p
    if _is_drop_path(module):
        return float(getattr(module, "drop_prob", 0.0) or 0.0)
    return 0.0


def numbers_of(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """The attributes of a module that a recipe read, as they are now; lists as tuples."""
    state = vars(module)
    found = ((name, state[name]) for name in _NUMBERS if name in state)
    return tuple((name, tuple(x) if isinstance(x, list) else x) for name, x in found)
