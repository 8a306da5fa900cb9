"""The operator `c2d::cosine_window_layer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from ..res_post_norm import reference as post_norm
from ..res_post_norm.op import res_post_norm
from ..window_attention.cosine import cosine_window_attention
from ..window_attention.op import check_layer
from ..window_layer.op import flops
from . import native, reference

FC1 = reference.NAMES.index("fc1.weight")


def cosine_window_layer(
    x: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    weights: Mapping[str, Tensor],
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """Swin V2's layer in windows: attention of cosines, then an MLP, both before a norm and a skip.

    `y = x + LN(proj(cosine_window_attention(qkv(x))))`, then `y + LN(fc2(GELU(fc1(y))))`. At
    inference on a CPU one kernel does all of it, a window at a time in cache, whatever autocast
    says: in the precision of x, in float32 for half x. Elsewhere, and where gradients are recorded,
    the layer is composed of `cosine_window_attention`, `res_post_norm` and torch's own product,
    which autocast rounds.

    Args:
        x: (B, H, W, C), H and W multiples of window_size. float32, bfloat16, float16 or float64;
            any strides.
        bias_table: ((2w-1)^2, heads), as in window_attention. May be float32 beside half x, as
            cosine_scale and the weights may.
        cosine_scale: (heads,), the factor of each head's cosines.
        weights: name -> tensor: qkv.weight (3C, C), qkv.bias (3C,); proj.weight (C, C), proj.bias
            (C,); fc1.weight (hidden, C), fc1.bias (hidden,); fc2.weight (C, hidden), fc2.bias (C,);
            norm1.weight, norm1.bias, norm2.weight, norm2.bias (C,).
        window_size: w, in pixels.
        num_heads: divides C.
        shift: how far the windows are shifted down and right, 0 <= shift < w.
        eps: of both norms.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape, name or number that does not fit. TypeError: a dtype that does not.

    Swin V2 (2111.09883), sections 3.1 and 3.2.
    """
    settings = (bias_table, cosine_scale, window_size, num_heads, shift, eps)
    known = frozen.ready("cosine_window_layer", weights, x, *settings)
    if known is not None:
        return known(x)
    check_layer(x, bias_table, window_size, num_heads, shift, permuted=False)
    checks.parameters(x, cosine_scale=cosine_scale)
    checks.shape("cosine_scale", cosine_scale, (num_heads,), "(heads,)")
    channels = x.shape[-1]
    shapes = {"norm1": (channels,), "norm2": (channels,), "qkv": (3 * channels, channels)}
    shapes |= {"proj": (channels, channels), **layer_weights.mlp_shapes(weights, channels)}
    ordered = layer_weights.ordered(x, weights, reference.NAMES, shapes)
    tables, numbers = (bias_table, cosine_scale), (window_size, num_heads, shift, float(eps))
    if dispatch.in_one_piece("cosine_window_layer", x, *tables, ordered, *numbers):
        frozen.keep(
            "cosine_window_layer",
            weights,
            x,
            *settings,
            fold=lambda: native.fold(x.dtype, *tables, ordered),
            run=lambda folded, x: native.run(x, folded, *numbers),
        )
        return _layer(x, *tables, ordered, *numbers)
    ordered = [weight.to(x.dtype) for weight in ordered]
    return reference.composed(x, *tables, ordered, numbers, _attention, _rest).to(x.dtype)


def _attention(
    qkv: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
) -> Tensor:
    return cosine_window_attention(
        qkv, bias_table, cosine_scale, window_size=window_size, num_heads=num_heads, shift=shift
    )


def _rest(x: Tensor, parts: list[Tensor], weights: Sequence[Tensor], eps: float) -> Tensor:
    return res_post_norm(x, parts, dict(zip(post_norm.NAMES, weights, strict=True)), eps=eps)


def _example(device: torch.device) -> tuple:
    shapes = {"norm1": (4,), "qkv": (12, 4), "proj": (4, 4), "norm2": (4,)}
    shapes |= {"fc1": (4, 4), "fc2": (4, 4)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    x, table = torch.zeros(1, 4, 4, 4, device=device), torch.zeros(49, 2, device=device)
    return x, table, torch.ones(2, device=device), weights, 4, 2, 0, 1e-5


_layer = define(
    Operator(
        name="cosine_window_layer",
        arguments="Tensor x, Tensor bias_table, Tensor cosine_scale, Tensor[] weights, "
        "SymInt window_size, SymInt num_heads, SymInt shift, float eps",
        outputs=1,
        reference=reference.cosine_window_layer,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, table, cosine_scale, weights, window, *_: flops(
            x[0], x[1], x[2], x[3], weights[FC1][0], window
        ),
        example=_example,
    )
)
dispatch.register(native.cosine_window_layer)
