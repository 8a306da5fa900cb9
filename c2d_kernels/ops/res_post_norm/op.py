"""The operator `c2d::res_post_norm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch, frozen, layer_weights
from c2d_kernels.operators import Operator, define

from . import native, reference, triton

PROJ, FC1 = (reference.NAMES.index(f"{module}.weight") for module in ("proj", "fc1"))


def res_post_norm(
    x: Tensor, parts: Sequence[Tensor], weights: Mapping[str, Tensor], *, eps: float = 1e-5
) -> Tensor:
    """The part after token mixing in a layer whose norms come last, just before each skip.

    `y = x + LN(proj([parts]))`, then `y + LN(fc2(GELU(fc1(y))))`, or `y` alone in a layer whose MLP
    is another operator's. On a CPU one kernel does all of it, some tokens at a time in cache,
    whatever autocast says: in the precision of x, bfloat16 by products of bfloat16 where the CPU
    has AVX-512 BF16. Another does its backward, in float32 for half x, from x and the parts alone:
    nothing else is kept. At inference on a GPU a Triton kernel does it for up to 64 channels, with
    products in autocast's dtype where that is on. Elsewhere torch's own operators do, which
    autocast rounds.

    Args:
        x: (B, H, W, C), float32, bfloat16, float16 or float64; any strides.
        parts: what mixing gave, (B, H, W, any) each, in the dtype of x; proj sees them side by
            side.
        weights: name -> tensor: proj.weight (C, channels of all parts), proj.bias (C,);
            fc1.weight (hidden, C), fc1.bias (hidden,); fc2.weight (C, hidden), fc2.bias (C,);
            norm1.weight, norm1.bias, norm2.weight, norm2.bias (C,). May be float32 beside half x.
            Without those of fc1, fc2 and norm2 the result is y.
        eps: of both norms.

    Returns:
        (B, H, W, C), in the dtype of x.

    Raises:
        ValueError: a shape or name that does not fit. TypeError: a dtype that does not.

    HiT-SR (2407.05878), whose norms follow Swin V2 (2111.09883), section 3.2.
    """
    settings = (*(getattr(part, "shape", None) for part in parts), eps)
    known = frozen.ready("res_post_norm", weights, x, *settings)
    if known is not None:
        return known(x, [part.to(x.dtype) for part in parts])
    checks.parameters(x, x=x)
    checks.feature_map("x", x)
    if not parts:
        raise ValueError("parts must hold at least one map.")
    for place, part in enumerate(parts):
        checks.parameters(x, **{f"parts[{place}]": part})
        pixels = (*x.shape[:3], None)
        checks.shape(f"parts[{place}]", part, pixels, "(B, H, W, any), B, H, W those of x")
    channels, inputs = x.shape[-1], sum(part.shape[-1] for part in parts)
    shapes = {"norm1": (channels,), "norm2": (channels,), "proj": (channels, inputs)}
    shapes |= layer_weights.mlp_shapes(weights, channels)
    ordered = layer_weights.ordered(x, weights, reference.NAMES, shapes, reference.MLP)
    parts = [part.to(x.dtype) for part in parts]  # autocast may have rounded them
    if dispatch.in_one_piece("res_post_norm", x, parts, ordered, float(eps)):
        ordered = layer_weights.autocast(x, ordered)
        kernels, widths = (triton if x.is_cuda else native), [part.shape[-1] for part in parts]
        frozen.keep(
            "res_post_norm",
            weights,
            x,
            *settings,
            fold=lambda: kernels.fold(x.dtype, widths, ordered),
            run=lambda folded, x, parts: kernels.run(x, parts, folded, float(eps)),
        )
        return _res_post_norm(x, parts, ordered, float(eps))
    return reference.composed(x, parts, [weight.to(x.dtype) for weight in ordered], eps).to(x.dtype)


def flops(batch: int, height: int, width: int, channels: int, inputs: int, hidden: int) -> int:
    """Operations of the definition of res_post_norm: its three products, one if hidden is 0."""
    return 2 * batch * height * width * channels * (inputs + 2 * hidden)


def _example(device: torch.device) -> tuple:
    x, square = torch.zeros(1, 4, 4, 4, device=device), (4, 4)
    shapes = {"proj": square, "norm1": (4,), "fc1": square, "fc2": square, "norm2": (4,)}
    return x, [x], layer_weights.zeros(reference.NAMES, shapes, device), 1e-5


_res_post_norm = define(
    Operator(
        name="res_post_norm",
        arguments="Tensor x, Tensor[] parts, Tensor[] weights, float eps",
        outputs=1,
        reference=reference.res_post_norm,
        fake=lambda x, *_: x.new_empty(x.shape),
        flops=lambda x, parts, weights, eps: flops(
            x[0], x[1], x[2], x[3], weights[PROJ][1], weights[FC1][0] if len(weights) > FC1 else 0
        ),
        example=_example,
    )
)
dispatch.register(native.res_post_norm)
dispatch.register(triton.res_post_norm)
