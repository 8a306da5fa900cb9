"""An MLP with its norm and skip in Triton: one launch, a block of tokens per program.

Products, norm, GELU and skip stay in registers: a token reads C numbers and writes C.
"""

import triton
import triton.language as tl

from c2d_kernels.triton_layers import mlp, normed


@triton.jit
def mlp_branch(
    x_ptr, out_ptr, fc2_bias_ptr, fc1_ptr, fc1_bias_ptr, fc2_ptr, tokens,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, EPS: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, DEPTH)
    place = token.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    here = (token < tokens)[:, None] & (channels < CHANNELS)[None, :]
    y = tl.load(x_ptr + place, mask=here, other=0.0).to(SUM)
    x = normed(y, CHANNELS, DEPTH, EPS).to(DOT)
    y += mlp(x, fc1_ptr, fc1_bias_ptr, fc2_ptr, DEPTH, HIDDEN, CHUNK, DOT, SUM, PRECISION)
    y += tl.load(fc2_bias_ptr + channels)[None, :]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=here)
