"""The operator `c2d::mlp_branch`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from . import native, reference, triton

FC1 = reference.NAMES.index("fc1.weight")


def mlp_branch(x: Tensor, weights: Mapping[str, Tensor], *, eps: float = 1e-5) -> Tensor:
    """The MLP of a transformer's layer with the norm before it and the skip around it.

    `x + fc2(GELU(fc1(LN(x))))`. On a CPU one kernel does all of it, some tokens at a time in cache,
    whatever autocast says: in the precision of x, bfloat16 by products of bfloat16 where the CPU
    has AVX-512 BF16. Another does its backward, in float32 for half x, from x alone: nothing else
    is kept. At inference on a GPU a Triton kernel does it for up to 64 channels, with products in
    autocast's dtype where that is on. Elsewhere torch's own operators do, which autocast rounds.

    Args:
        x: (B, H, W, C), float32, bfloat16, float16 or float64; any strides.
        weights: name -> tensor: norm.weight, norm.bias (C,); fc1.weight (hidden, C), fc1.bias
            (hidden,); fc2.weight (C, hidden), fc2.bias (C,). May be float32 beside half x.
        eps: of the norm.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape or name that does not fit. TypeError: a dtype that does not.

    Swin Transformer (2103.14030), equation 3.
    """
    known = frozen.ready("mlp_branch", weights, x, eps)
    if known is not None:
        return known(x)
    checks.parameters(x, x=x)
    checks.feature_map("x", x)
    channels = x.shape[-1]
    shapes = {"norm": (channels,), **layer_weights.mlp_shapes(weights, channels)}
    ordered = layer_weights.ordered(x, weights, reference.NAMES, shapes)
    if dispatch.in_one_piece("mlp_branch", x, ordered, float(eps)):
        ordered = layer_weights.autocast(x, ordered)
        kernels = triton if x.is_cuda else native
        frozen.keep(
            "mlp_branch",
            weights,
            x,
            eps,
            fold=lambda: kernels.fold(x.dtype, ordered),
            run=lambda folded, x: kernels.run(x, folded, float(eps)),
        )
        return _mlp_branch(x, ordered, float(eps))
    return reference.composed(x, [weight.to(x.dtype) for weight in ordered], eps).to(x.dtype)


def flops(batch: int, height: int, width: int, channels: int, hidden: int) -> int:
    """Operations of the definition of mlp_branch: its two products."""
    return 4 * batch * height * width * channels * hidden


def _example(device: torch.device) -> tuple:
    shapes = {"norm": (4,), "fc1": (4, 4), "fc2": (4, 4)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    return torch.zeros(1, 4, 4, 4, device=device), weights, 1e-5


_mlp_branch = define(
    Operator(
        name="mlp_branch",
        arguments="Tensor x, Tensor[] weights, float eps",
        outputs=1,
        reference=reference.mlp_branch,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, weights, *_: flops(x[0], x[1], x[2], x[3], weights[FC1][0]),
        example=_example,
    )
)
dispatch.register(native.mlp_branch)
dispatch.register(triton.mlp_branch)
