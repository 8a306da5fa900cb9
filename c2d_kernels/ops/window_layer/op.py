"""The operator `c2d::window_layer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from c2d_kernels import dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from ..attention_branch.op import OPERATORS
from ..attention_branch.op import flops as branch_flops
from ..mlp_branch import reference as mlp_reference
from ..mlp_branch.op import mlp_branch
from ..window_attention.op import check_layer
from . import native, reference, triton

FC1 = reference.NAMES.index("fc1.weight")


def window_layer(
    x: Tensor,
    bias_table: Tensor,
    weights: Mapping[str, Tensor],
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """A transformer layer in windows: attention, then an MLP, both after a norm and around a skip.

    `y = x + proj(window_attention(qkv(LN(x))))`, then `y + fc2(GELU(fc1(LN(y))))`. At inference on
    a CPU one kernel does all of it, a window at a time in cache, whatever autocast says: in the
    precision of x, bfloat16 by products of bfloat16 where the CPU has AVX-512 BF16. On a GPU a
    Triton kernel does, for windows of up to 64 tokens of up to 64 channels, with products in
    autocast's dtype where that is on. Elsewhere, and where gradients are recorded, the layer is
    composed of `window_attention` and torch's own operators, which autocast rounds.

    Args:
        x: (B, H, W, C), H and W multiples of window_size. float32, bfloat16, float16 or float64;
            any strides.
        bias_table: ((2w-1)^2, heads), as in window_attention. May be float32 beside half x, as the
            weights may.
        weights: name -> tensor: norm1.weight, norm1.bias, norm2.weight, norm2.bias (C,); qkv.weight
            (3C, C), qkv.bias (3C,); proj.weight (C, C), proj.bias (C,); fc1.weight (hidden, C),
            fc1.bias (hidden,); fc2.weight (C, hidden), fc2.bias (C,).
        window_size: w, in pixels.
        num_heads: divides C.
        shift: how far the windows are shifted down and right, 0 <= shift < w.
        eps: of both norms.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape, name or number that does not fit. TypeError: a dtype that does not.

    SwinIR (2108.10257), equation 5.
    """
    settings = (bias_table, window_size, num_heads, shift, eps)
    known = frozen.ready("window_layer", weights, x, *settings)
    if known is not None:
        return known(x)
    check_layer(x, bias_table, window_size, num_heads, shift, permuted=False)
    channels = x.shape[-1]
    shapes = {"norm1": (channels,), "norm2": (channels,), "qkv": (3 * channels, channels)}
    shapes |= {"proj": (channels, channels), **layer_weights.mlp_shapes(weights, channels)}
    ordered = layer_weights.ordered(x, weights, reference.NAMES, shapes)
    numbers = (window_size, num_heads, shift, float(eps))
    if dispatch.in_one_piece("window_layer", x, bias_table, ordered, *numbers):
        ordered = layer_weights.autocast(x, ordered)
        kernels = triton if x.is_cuda else native
        frozen.keep(
            "window_layer",
            weights,
            x,
            *settings,
            fold=lambda: kernels.fold(x.dtype, bias_table, ordered, window_size, num_heads),
            run=lambda folded, x: kernels.run(x, folded, *numbers),
        )
        return _layer(x, bias_table, ordered, *numbers)
    ordered = [weight.to(x.dtype) for weight in ordered]
    return reference.composed(x, bias_table, ordered, *numbers, OPERATORS, _mlp).to(x.dtype)


def _mlp(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """The MLP in one piece, or under autocast, which asks for other products, of torch's."""
    if dispatch.autocast_dtype(x.device) is not None:
        return mlp_reference.composed(x, weights, eps)
    return mlp_branch(x, dict(zip(mlp_reference.NAMES, weights, strict=True)), eps=eps)


def flops(batch: int, height: int, width: int, channels: int, hidden: int, window: int) -> int:
    """Operations of the definition of window_layer: its four products and the attention's two."""
    mlp = 4 * batch * height * width * channels * hidden
    return branch_flops(batch, height, width, channels, window, False) + mlp


def _example(device: torch.device) -> tuple:
    shapes = {"norm1": (4,), "qkv": (12, 4), "proj": (4, 4), "norm2": (4,)}
    shapes |= {"fc1": (4, 4), "fc2": (4, 4)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    x, table = torch.zeros(1, 4, 4, 4, device=device), torch.zeros(49, 2, device=device)
    return x, table, weights, 4, 2, 0, 1e-5


_layer = define(
    Operator(
        name="window_layer",
        arguments="Tensor x, Tensor bias_table, Tensor[] weights, SymInt window_size, "
        "SymInt num_heads, SymInt shift, float eps",
        outputs=1,
        reference=reference.window_layer,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, table, weights, window, *_: flops(
            x[0], x[1], x[2], x[3], weights[FC1][0], window
        ),
        example=_example,
    )
)
dispatch.register(native.window_layer)
dispatch.register(triton.window_layer)
