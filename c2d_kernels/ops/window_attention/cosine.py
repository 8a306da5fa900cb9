"""The operator `c2d::cosine_window_attention`, and what Swin V2 hands to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from . import native, reference
from .op import check_qkv, flops, window_attention

LARGEST_SCALE = math.log(100.0)
"""At which the logarithm of the cosines' scale is cut off."""


def cosine_window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    *,
    window_size: int,
    num_heads: int,
    shift: int = 0,
) -> Tensor:
    """Attention of cosines inside windows: `softmax(cosine_scale cos(q, k) + bias + mask) v`.

    On a CPU q and k are divided by their lengths inside the kernel, forward and backward; elsewhere
    one product of the map does that before `window_attention`.

    Args:
        qkv: (B, H, W, 3C) = [q | k | v], as for window_attention. Lengths of a head's q and k below
            1e-12 count as that.
        bias_table: ((2w-1)^2, heads), added to the scores as window_attention does. May be float32
            beside half qkv, as cosine_scale.
        cosine_scale: (heads,), the factor of each head's cosines.
        window_size: w, in pixels.
        num_heads: divides C.
        shift: 0 <= shift < w, as in window_attention.

    Returns:
        (B, H, W, C), in the dtype of qkv.

    Raises:
        ValueError: a shape or number that does not fit. TypeError: a dtype that does not.

    Swin V2 (2111.09883), section 3.2.
    """
    checks.parameters(qkv, qkv=qkv, bias_table=bias_table, cosine_scale=cosine_scale)
    (qkv,) = dispatch.autocast(qkv)
    check_qkv(qkv, bias_table, window_size, num_heads, shift)
    checks.shape("cosine_scale", cosine_scale, (num_heads,), "(heads,)")
    options = (window_size, num_heads, shift)
    if dispatch.in_one_piece("cosine_window_attention", qkv, bias_table, cosine_scale, *options):
        return _cosine(qkv, bias_table, cosine_scale, *options)
    return window_attention(
        reference.normalised(qkv, cosine_scale),
        bias_table,
        window_size=window_size,
        num_heads=num_heads,
        shift=shift,
        scale=1.0,
    )


def swin_v2_tables(bias_table: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The bias table and the scale of cosines of Swin V2's attention, from its parameters.

    `softmax(scale_h cos(q, k) + 16 sigmoid(bias) + mask) v`: Swin V2 (2111.09883), section 3.2.

    Args:
        bias_table: ((2w-1)^2, heads), what an MLP makes of each offset.
        logit_scale: logarithm of each head's scale, num_heads numbers.
    """
    cosine_scale = logit_scale.clamp(max=LARGEST_SCALE).exp().flatten()
    return 16 * bias_table.sigmoid(), cosine_scale


def _example(device: torch.device) -> tuple:
    qkv = torch.zeros(1, 4, 4, 12, device=device)
    return qkv, torch.zeros(49, 2, device=device), torch.ones(2, device=device), 4, 2, 0


_cosine = define(
    Operator(
        name="cosine_window_attention",
        arguments="Tensor qkv, Tensor bias_table, Tensor cosine_scale, SymInt window_size, "
        "SymInt num_heads, SymInt shift",
        outputs=1,
        reference=reference.cosine_window_attention,
        fake=lambda qkv, *_: qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)),
        flops=lambda qkv, table, cosine_scale, window, *_: flops(
            qkv[0], qkv[1], qkv[2], qkv[3] // 3, window
        ),
        example=_example,
    )
)
dispatch.register(native.cosine_window_attention)
