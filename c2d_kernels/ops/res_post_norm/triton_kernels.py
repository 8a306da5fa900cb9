"""The per-token part of a res-post-norm layer in Triton: one launch, a block of tokens per program.

Products, norms, GELU and skips stay in registers. A token of C = 60 with two parts of 60 in float32
reads 720 bytes and writes 240; torch's operators under autocast move some 5,000 in 20 launches.
"""

import triton
import triton.language as tl

from c2d_kernels.triton_layers import matrix, mlp, normed


@triton.jit
def res_post_norm(
    x_ptr, parts_ptr, out_ptr, proj_ptr, vectors_ptr, fc1_ptr, fc1_bias_ptr, fc2_ptr, tokens,
    WIDTHS: tl.constexpr, ROWS: tl.constexpr, STRIDES: tl.constexpr, CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    EPS: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """parts: pointers to maps of WIDTHS channels, pixels STRIDES apart, which have ROWS in proj."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = token < tokens
    token = token.to(tl.int64)
    channels = tl.arange(0, DEPTH)
    mixed = tl.zeros([BLOCK, DEPTH], SUM)
    for i in tl.static_range(len(WIDTHS)):
        inputs = tl.arange(0, ROWS[i])
        here = exists[:, None] & (inputs < WIDTHS[i])[None, :]
        part = tl.load(
            parts_ptr[i] + (token[:, None] * STRIDES[i] + inputs[None, :]), mask=here, other=0.0
        )
        mixed += tl.dot(
            part.to(DOT), matrix(proj_ptr, inputs, DEPTH, DOT), input_precision=PRECISION
        )
        proj_ptr += ROWS[i] * DEPTH
    place = token[:, None] * CHANNELS + channels[None, :]
    here = exists[:, None] & (channels < CHANNELS)[None, :]
    mixed += tl.load(vectors_ptr + channels)[None, :]
    mixed = normed(mixed, CHANNELS, DEPTH, EPS)
    gain, offset = (
        tl.load(vectors_ptr + DEPTH + channels),
        tl.load(vectors_ptr + 2 * DEPTH + channels),
    )
    y = tl.load(x_ptr + place, mask=here, other=0.0).to(SUM)
    y += mixed * gain[None, :] + offset[None, :]
    if HIDDEN > 0:
        fed = mlp(
            y.to(DOT), fc1_ptr, fc1_bias_ptr, fc2_ptr, DEPTH, HIDDEN, CHUNK, DOT, SUM, PRECISION
        )
        fed = normed(
            fed + tl.load(vectors_ptr + 3 * DEPTH + channels)[None, :], CHANNELS, DEPTH, EPS
        )
        gain = tl.load(vectors_ptr + 4 * DEPTH + channels)
        y += fed * gain[None, :] + tl.load(vectors_ptr + 5 * DEPTH + channels)[None, :]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=here)
