"""The operator `c2d::conv_ffn`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from . import native, reference

FC1 = reference.NAMES.index("fc1.weight")


def conv_ffn(
    x: Tensor, weights: Mapping[str, Tensor], *, norm_first: bool, eps: float = 1e-5
) -> Tensor:
    """SRFormer's feed-forward, an MLP with a depthwise 5x5 branch, with the norm and the skip.

    `x + fc2(h + GELU(dwconv(h)))`, `h = GELU(fc1(x))`, with a LayerNorm before fc1 (SRFormer) or
    after fc2 (HiT-SRF). On a CPU one kernel does all of it, some rows of h at a time in cache,
    whatever autocast says: in the precision of x, bfloat16 by products of bfloat16 where the CPU
    has AVX-512 BF16. Another does its backward, in float32 for half x, from x alone: nothing else
    is kept. Elsewhere torch's own operators do, which autocast rounds.

    Args:
        x: (B, H, W, C), float32, bfloat16, float16 or float64; any strides.
        weights: name -> tensor: fc1.weight (hidden, C), fc1.bias (hidden,); dwconv.weight
            (hidden, 1, 5, 5), dwconv.bias (hidden,); fc2.weight (C, hidden), fc2.bias (C,);
            norm.weight, norm.bias (C,). May be float32 beside half x.
        norm_first: where the norm stands.
        eps: of the norm.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape or name that does not fit. TypeError: a dtype that does not.

    SRFormer (2303.09735), section 3.3; HiT-SR (2407.05878).
    """
    known = frozen.ready("conv_ffn", weights, x, norm_first, eps)
    if known is not None:
        return known(x)
    checks.parameters(x, x=x)
    checks.feature_map("x", x)
    channels = x.shape[-1]
    shapes = {"norm": (channels,), **layer_weights.mlp_shapes(weights, channels)}
    shapes["dwconv"] = (shapes["fc1"][0], 1, 5, 5)
    ordered = layer_weights.ordered(x, weights, reference.NAMES, shapes)
    options = (bool(norm_first), float(eps))
    if dispatch.in_one_piece("conv_ffn", x, ordered, *options):
        frozen.keep(
            "conv_ffn",
            weights,
            x,
            norm_first,
            eps,
            fold=lambda: native.fold(x.dtype, ordered, norm_first),
            run=lambda folded, x: native.run(x, folded, *options),
        )
        return _conv_ffn(x, ordered, *options)
    return reference.composed(x, [weight.to(x.dtype) for weight in ordered], *options).to(x.dtype)


def flops(batch: int, height: int, width: int, channels: int, hidden: int) -> int:
    """Operations of the definition of conv_ffn: its two products and 25 taps."""
    return 2 * batch * height * width * hidden * (2 * channels + 25)


def _example(device: torch.device) -> tuple:
    shapes = {"norm": (4,), "fc1": (4, 4), "dwconv": (4, 1, 5, 5), "fc2": (4, 4)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    return torch.zeros(1, 4, 4, 4, device=device), weights, True, 1e-5


_conv_ffn = define(
    Operator(
        name="conv_ffn",
        arguments="Tensor x, Tensor[] weights, bool norm_first, float eps",
        outputs=1,
        reference=reference.conv_ffn,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, weights, *_: flops(x[0], x[1], x[2], x[3], weights[FC1][0]),
        example=_example,
    )
)
dispatch.register(native.conv_ffn)
