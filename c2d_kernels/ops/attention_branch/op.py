"""The operator `c2d::attention_branch`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from c2d_kernels import dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from ..window_attention import op as window_attention
from . import native, reference


def attention_branch(
    x: Tensor,
    bias_table: Tensor,
    weights: Mapping[str, Tensor],
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """Attention in windows with the norm before it and the skip around it.

    `x + proj(window_attention(qkv(LN(x))))`, or `x + proj(permuted_window_attention(q(LN(x)),
    kv(LN(x))))` if the weights have q and kv. At inference on a CPU one kernel does all of it, a
    window at a time in cache, whatever autocast says: in the precision of x, bfloat16 by products
    of bfloat16 where the CPU has AVX-512 BF16. Elsewhere, and where gradients are recorded, it is
    composed of the attention operators and torch's own, which autocast rounds.

    Args:
        x: (B, H, W, C), H and W multiples of window_size. float32, bfloat16, float16 or float64;
            any strides.
        bias_table: ((2w-1)^2, heads) as in window_attention, or ((w-1)^2, heads) as in
            permuted_window_attention. May be float32 beside half x, as the weights may.
        weights: name -> tensor: norm.weight, norm.bias (C,); proj.weight (C, C), proj.bias (C,);
            and qkv.weight (3C, C), qkv.bias (3C,), or q.weight (C, C), q.bias (C,), kv.weight
            (C/2, C), kv.bias (C/2,).
        window_size: w, in pixels; even with q and kv.
        num_heads: divides C.
        shift: how far the windows are shifted down and right, 0 <= shift < w; even with q and kv.
        eps: of the norm.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape, name or number that does not fit. TypeError: a dtype that does not.

    SwinIR (2108.10257), equation 5, and SRFormer (2303.09735), section 3.2.
    """
    settings = (bias_table, window_size, num_heads, shift, eps)
    known = frozen.ready("attention_branch", weights, x, *settings)
    if known is not None:
        return known(x)
    permuted = "q.weight" in weights or "kv.weight" in weights
    window_attention.check_layer(x, bias_table, window_size, num_heads, shift, permuted)
    channels = x.shape[-1]
    shapes = {"norm": (channels,), "qkv": (3 * channels, channels), "q": (channels, channels)}
    shapes |= {"kv": (channels // 2, channels), "proj": (channels, channels)}
    names = reference.PERMUTED_NAMES if permuted else reference.NAMES
    ordered = layer_weights.ordered(x, weights, names, shapes)
    numbers = (window_size, num_heads, shift, float(eps))
    if dispatch.in_one_piece("attention_branch", x, bias_table, ordered, *numbers):
        frozen.keep(
            "attention_branch",
            weights,
            x,
            *settings,
            fold=lambda: native.fold_branch(x.dtype, bias_table, ordered, num_heads),
            run=lambda folded, x: native.run(x, folded, *numbers),
        )
        return _branch(x, bias_table, ordered, *numbers)
    ordered = [weight.to(x.dtype) for weight in ordered]
    return reference.composed(x, bias_table, ordered, *numbers, OPERATORS)


def flops(batch: int, height: int, width: int, channels: int, window: int, permuted: bool) -> int:
    """Operations of the definition of attention_branch: its products and the attention's two."""
    inputs = channels * 3 // 2 if permuted else 3 * channels
    linear = 2 * batch * height * width * channels * (inputs + channels)
    count = window_attention.permuted_flops if permuted else window_attention.flops
    return linear + count(batch, height, width, channels, window)


def _attention(
    qkv: Tensor, bias_table: Tensor, window_size: int, num_heads: int, shift: int, scale: float
) -> Tensor:
    return window_attention.window_attention(
        qkv, bias_table, window_size=window_size, num_heads=num_heads, shift=shift, scale=scale
    )


def _permuted(
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
) -> Tensor:
    return window_attention.permuted_window_attention(
        q, kv, bias_table, window_size=window_size, num_heads=num_heads, shift=shift, scale=scale
    )


OPERATORS = reference.Attentions(of_qkv=_attention, of_q_and_kv=_permuted)
"""The public operators as reference.composed calls them."""


def _example(device: torch.device) -> tuple:
    shapes = {"norm": (4,), "qkv": (12, 4), "proj": (4, 4)}
    weights = layer_weights.zeros(reference.NAMES, shapes, device)
    x, table = torch.zeros(1, 4, 4, 4, device=device), torch.zeros(49, 2, device=device)
    return x, table, weights, 4, 2, 0, 1e-5


_branch = define(
    Operator(
        name="attention_branch",
        arguments="Tensor x, Tensor bias_table, Tensor[] weights, SymInt window_size, "
        "SymInt num_heads, SymInt shift, float eps",
        outputs=1,
        reference=reference.attention_branch,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, table, weights, window, *_: flops(
            x[0], x[1], x[2], x[3], window, len(weights) == len(reference.PERMUTED_NAMES)
        ),
        example=_example,
    )
)
dispatch.register(native.attention_branch)
