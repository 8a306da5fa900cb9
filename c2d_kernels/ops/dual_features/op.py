"""The operator `c2d::dual_features`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from . import native, reference

LOCAL = reference.NAMES.index("local.weight")


def dual_features(
    x: Tensor,
    weights: Mapping[str, Tensor],
    *,
    encoding: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """HiT-SR's dual feature extraction: a branch that looks around times one that does not.

    `expand(f(conv(f(local(x))))) * linear(x)`, conv 3x3 with zero padding, f = LeakyReLU(0.2). At
    inference on a CPU one kernel does all of it, some rows at a time in cache, whatever autocast
    says. Elsewhere, and where gradients are recorded, torch's own operators do, which autocast
    rounds.

    Args:
        x: (B, H, W, C), float32, bfloat16, float16 or float64; any strides.
        weights: name -> tensor: local.weight (hidden, C), local.bias (hidden,); conv.weight
            (hidden, hidden, 3, 3), conv.bias (hidden,); expand.weight (C, hidden), expand.bias
            (C,); linear.weight (C, C), linear.bias (C,). May be float32 beside half x.
        encoding: (H, C) and (W, C), added to every pixel of a row and of a column of x.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape or name that does not fit. TypeError: a dtype that does not.

    HiT-SR (2407.05878), section 3.3; the encoding is HiET's.
    """
    rows, columns = encoding or (None, None)
    settings = tuple(getattr(place, "shape", None) for place in encoding or ())
    known = frozen.ready("dual_features", weights, x, *settings)
    if known is not None:
        return known(x, rows, columns)
    checks.parameters(x, x=x)
    checks.feature_map("x", x)
    channels = x.shape[-1]
    local = weights.get("local.weight")
    hidden = local.shape[0] if isinstance(local, Tensor) and local.dim() == 2 else 1
    shapes = {
        "local": (hidden, channels),
        "conv": (hidden, hidden, 3, 3),
        "expand": (channels, hidden),
        "linear": (channels, channels),
    }
    ordered = layer_weights.ordered(x, weights, reference.NAMES, shapes)
    if encoding is not None:
        for index, place in enumerate(encoding):
            name = f"encoding[{index}]"
            checks.parameters(x, **{name: place})
            checks.shape(name, place, (x.shape[1 + index], channels), ("(H, C)", "(W, C)")[index])
    if dispatch.in_one_piece("dual_features", x, rows, columns, ordered):
        frozen.keep(
            "dual_features",
            weights,
            x,
            *settings,
            fold=lambda: native.fold(x.dtype, ordered),
            run=lambda folded, x, rows, columns: native.run(x, rows, columns, folded),
        )
        return _dual_features(x, rows, columns, ordered)
    if encoding is not None:
        rows, columns = (place.to(x.dtype) for place in encoding)
    ordered = [weight.to(x.dtype) for weight in ordered]
    return reference.composed(x, rows, columns, ordered).to(x.dtype)


def flops(batch: int, height: int, width: int, channels: int, hidden: int) -> int:
    """Operations of the definition of dual_features: its three products and the convolution."""
    each = channels * (channels + 2 * hidden) + 9 * hidden * hidden
    return 2 * batch * height * width * each


def _example(device: torch.device) -> tuple:
    shapes = {"local": (4, 4), "conv": (4, 4, 3, 3), "expand": (4, 4), "linear": (4, 4)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    return torch.zeros(1, 4, 4, 4, device=device), None, None, weights


_dual_features = define(
    Operator(
        name="dual_features",
        arguments="Tensor x, Tensor? rows, Tensor? columns, Tensor[] weights",
        outputs=1,
        reference=reference.dual_features,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, rows, columns, weights: flops(x[0], x[1], x[2], x[3], weights[LOCAL][0]),
        example=_example,
    )
)
dispatch.register(native.dual_features)
