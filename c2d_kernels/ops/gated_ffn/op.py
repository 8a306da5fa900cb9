"""The operator `c2d::gated_ffn`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from . import native, reference

DWCONV = reference.NAMES.index("dwconv.weight")


def gated_ffn(x: Tensor, weights: Mapping[str, Tensor], *, eps: float = 1e-5) -> Tensor:
    """A feed-forward, half of whose hidden features gate the others, with its norm and skip.

    `x + fc2(a * dwconv(LN(b)))`, `[a, b] = GELU(fc1(LN(x)))`, dwconv 3x3 (DAT) or 5x5 (MambaIRv2).
    At inference on a CPU one kernel does all of it, a row of hidden features at a time in cache,
    whatever autocast says: in the precision of x, in float32 for half x. Elsewhere, and where
    gradients are recorded, torch's own operators do, which autocast rounds.

    Args:
        x: (B, H, W, C), float32, bfloat16, float16 or float64; any strides.
        weights: name -> tensor: norm.weight, norm.bias (C,); fc1.weight (2 gated, C), fc1.bias
            (2 gated,); gate_norm.weight, gate_norm.bias (gated,); dwconv.weight (gated, 1, 3, 3)
            or (gated, 1, 5, 5), dwconv.bias (gated,); fc2.weight (C, gated), fc2.bias (C,). May be
            float32 beside half x.
        eps: of both norms.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape or name that does not fit. TypeError: a dtype that does not.

    DAT (2308.03364), section 3.3; MambaIRv2 (2411.15269).
    """
    known = frozen.ready("gated_ffn", weights, x, eps)
    if known is not None:
        return known(x)
    checks.parameters(x, x=x)
    checks.feature_map("x", x)
    ordered = layer_weights.ordered(x, weights, reference.NAMES, _shapes(weights, x.shape[-1]))
    if dispatch.in_one_piece("gated_ffn", x, ordered, float(eps)):
        frozen.keep(
            "gated_ffn",
            weights,
            x,
            eps,
            fold=lambda: native.fold(x.dtype, ordered),
            run=lambda folded, x: native.run(x, folded, float(eps)),
        )
        return _gated_ffn(x, ordered, float(eps))
    return reference.composed(x, [weight.to(x.dtype) for weight in ordered], eps).to(x.dtype)


def _shapes(weights: Mapping[str, Tensor], channels: int) -> dict[str, tuple[int, ...]]:
    """The weights' shapes; dwconv.weight says how many channels are gated, and its own side."""
    dwconv = weights.get("dwconv.weight")
    gated, side = 1, 3
    if isinstance(dwconv, Tensor) and dwconv.dim() == 4:
        gated, side = dwconv.shape[0], 5 if dwconv.shape[-1] == 5 else 3
    if gated == 0:
        raise ValueError("weights['dwconv.weight'] must have at least one row, got none.")
    shapes: dict[str, tuple[int, ...]] = {"norm": (channels,), "gate_norm": (gated,)}
    shapes |= {"fc1": (2 * gated, channels), "dwconv": (gated, 1, side, side)}
    return shapes | {"fc2": (channels, gated)}


def flops(batch: int, height: int, width: int, channels: int, gated: int, side: int) -> int:
    """Operations of the definition of gated_ffn: its two products and the convolution's taps."""
    return 2 * batch * height * width * gated * (3 * channels + side**2)


def _example(device: torch.device) -> tuple:
    shapes: dict[str, tuple[int, ...]] = {"norm": (4,), "fc1": (4, 4), "gate_norm": (2,)}
    shapes |= {"dwconv": (2, 1, 3, 3), "fc2": (4, 2)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    return torch.zeros(1, 4, 4, 4, device=device), weights, 1e-5


_gated_ffn = define(
    Operator(
        name="gated_ffn",
        arguments="Tensor x, Tensor[] weights, float eps",
        outputs=1,
        reference=reference.gated_ffn,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, weights, *_: flops(
            x[0], x[1], x[2], x[3], weights[DWCONV][0], weights[DWCONV][-1]
        ),
        example=_example,
    )
)
dispatch.register(native.gated_ffn)
