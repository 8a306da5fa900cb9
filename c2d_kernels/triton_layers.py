"""Parts of the Triton kernels of whole layers. Imported at the first launch, with triton.

A program has BLOCK tokens, whose C channels it holds as rows of DEPTH numbers, a power of two, with
zeros behind the channels. Matrices come packed to that size, rows of inputs, so that no load of a
weight is masked; maps are contiguous, so that their loads are as wide as C allows.
"""

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def normed(x, CHANNELS: tl.constexpr, DEPTH: tl.constexpr, EPS: tl.constexpr):
    """LayerNorm over the channels of rows, without gain and offset; zero behind the channels."""
    mean = tl.sum(x, 1) / CHANNELS
    x = tl.where((tl.arange(0, DEPTH) < CHANNELS)[None, :], x - mean[:, None], 0.0)
    return x * (1.0 / tl.sqrt(tl.sum(x * x, 1) / CHANNELS + EPS))[:, None]


@triton.jit
def matrix(pointer, rows, COLUMNS: tl.constexpr, DOT: tl.constexpr):
    """Some rows of a packed matrix, all of its columns."""
    return tl.load(pointer + rows[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]).to(DOT)


@triton.jit
def mlp(
    x, fc1_ptr, fc1_bias_ptr, fc2_ptr, DEPTH: tl.constexpr, HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """fc2(GELU(fc1(x))) without fc2's bias, CHUNK hidden channels at a time; x in DOT.

    fc1 lies as (HIDDEN / CHUNK, DEPTH, CHUNK), fc2 as (HIDDEN, DEPTH).
    """
    channels = tl.arange(0, DEPTH)
    total = tl.zeros([x.shape[0], DEPTH], SUM)
    for start in range(0, HIDDEN, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        first = matrix(fc1_ptr + start * DEPTH, channels, CHUNK, DOT)
        inner = (
            tl.dot(x, first, input_precision=PRECISION) + tl.load(fc1_bias_ptr + hidden)[None, :]
        )
        second = matrix(fc2_ptr, hidden, DEPTH, DOT)
        total += tl.dot(gelu(inner).to(DOT), second, input_precision=PRECISION)
    return total
