"""SwinIR's transformer layer in Triton: one launch, a window per program.

A window of 8x8 tokens is read once and written once. Between, a head's queries, keys, values and
scores, the output of proj as it grows, and the MLP, CHUNK hidden channels at a time, stay in
registers. The bias lies dense, (heads, N, N), where neighbouring lanes read neighbouring numbers.

Traffic at C = 60 in float32: 240 bytes read and 240 written a token, and the weights, 60 KB in
bfloat16 and 98 KB of bias, from L2. Operations with heads padded from 10 to 16 and channels from 60
to 64: 107,000 a token, where the definition has 92,000.
"""

import triton
import triton.language as tl

from c2d_kernels.ops.window_attention.triton_kernels import LOG2E, _corner, _region
from c2d_kernels.triton_layers import matrix, mlp, normed


@triton.jit
def window_layer(
    x_ptr, out_ptr, inputs_ptr, input_bias_ptr, bias_ptr, proj_ptr, vectors_ptr, fc1_ptr,
    fc1_bias_ptr, fc2_ptr, size, heads,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, HEAD: tl.constexpr, HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
    EPS: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """inputs: (heads, 3, DEPTH, HEAD), bias: (heads, BLOCK, BLOCK); see triton.fold."""
    corner = _corner(tl.program_id(0), size, WINDOW)
    image, top, left = corner
    tokens, channels = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    row, column = top + tokens // WINDOW, left + tokens % WINDOW
    if SHIFT > 0:
        row = tl.where(row + SHIFT >= size[0], row + SHIFT - size[0], row + SHIFT)
        column = tl.where(column + SHIFT >= size[1], column + SHIFT - size[1], column + SHIFT)
    pixel = (tl.cast(image, tl.int64) * size[0] + row) * size[1] + column
    place = pixel[:, None] * CHANNELS + channels[None, :]
    here = (tokens < WINDOW * WINDOW)[:, None] & (channels < CHANNELS)[None, :]
    y = tl.load(x_ptr + place, mask=here, other=0.0).to(SUM)
    x = normed(y, CHANNELS, DEPTH, EPS).to(DOT)
    y += tl.load(vectors_ptr + channels)[None, :]
    depth = tl.arange(0, HEAD)
    for head in range(heads):
        weights, offsets = inputs_ptr + head * 3 * DEPTH * HEAD, input_bias_ptr + head * 3 * HEAD
        q = tl.dot(x, matrix(weights, channels, HEAD, DOT), input_precision=PRECISION)
        k = tl.dot(
            x, matrix(weights + DEPTH * HEAD, channels, HEAD, DOT), input_precision=PRECISION
        )
        v = tl.dot(
            x, matrix(weights + 2 * DEPTH * HEAD, channels, HEAD, DOT), input_precision=PRECISION
        )
        q += tl.load(offsets + depth)[None, :]
        k += tl.load(offsets + HEAD + depth)[None, :]
        v += tl.load(offsets + 2 * HEAD + depth)[None, :]
        scores = tl.dot(q.to(DOT), tl.trans(k.to(DOT)), input_precision=PRECISION)
        scores += matrix(bias_ptr + head * BLOCK * BLOCK, tokens, BLOCK, SUM)
        if SHIFT > 0:
            region = _region(tokens, corner, size, WINDOW, SHIFT, 1)
            apart = region[:, None] != region[None, :]
            scores = tl.where(apart, scores - 100.0 * LOG2E, scores)
        p = tl.exp2(scores - tl.max(scores, 1)[:, None])
        attended = tl.dot(p.to(DOT), v.to(DOT), input_precision=PRECISION) / tl.sum(p, 1)[:, None]
        back = matrix(proj_ptr + head * HEAD * DEPTH, depth, DEPTH, DOT)
        y += tl.dot(attended.to(DOT), back, input_precision=PRECISION)
    x = normed(y, CHANNELS, DEPTH, EPS).to(DOT)
    y += mlp(x, fc1_ptr, fc1_bias_ptr, fc2_ptr, DEPTH, HIDDEN, CHUNK, DOT, SUM, PRECISION)
    y += tl.load(vectors_ptr + DEPTH + channels)[None, :]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=here)
