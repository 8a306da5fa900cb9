"""Channel correlation in Triton, imported (with triton) at the first launch; see triton.py.

`out = v M^T` with `M = q^T v / n`, C x C per window. Backward,
with `G = g^T v / n` for a gradient g: `dq = v G^T` and `dv = g M + q G`.

The idea: a program has at most 256 tokens. A window of no more (up to 16x16) is one program: it
sums M in float32 registers over blocks of tokens, then meets the same tokens again, in L1 or L2 by
now. A larger one is split: `gram` leaves one partial M for each 256 tokens, torch adds them in
fixed order, and the programs that apply M read the sum. Any map: a token beyond the border is a
zero that M does not notice, and n counts those that exist.

Traffic, C = 30 in bfloat16: a window of 16x16 reads 30,720 bytes and writes 15,360 for 921,600
operations, 20 a byte; backward 46,080 and 30,720. A window of 64x64 reads 491,520, reads v once
more, writes 245,760, and leaves 16 partial M of 3,600 bytes. How many blocks of tokens a part has
is an argument: with the number known, the loops were unrolled and took up to four times the
registers, with spills.

Registers a thread, no spills (triton 3.9, sm_90; bfloat16 / float32):
             16x16, C = 30   64x64, C = 30   64x64, C = 60
  gram                         48 / 48         80 / 70
  forward      66 / 80         54 / 62         80 / 64
  backward    108 / 92         72 / 64         92 / 78
Shared memory a program: 4 to 36 KB in bfloat16, 8 to 56 KB in float32.
"""

import triton
import triton.language as tl


@triton.jit
def _tokens(tokens, window, size, strides, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Where tokens of a window lie, 64 bit, and whether they exist."""
    rows, columns = (size[0] + HEIGHT - 1) // HEIGHT, (size[1] + WIDTH - 1) // WIDTH
    image, inside = window // (rows * columns), window % (rows * columns)
    y = inside // columns * HEIGHT + tokens // WIDTH
    x = inside % columns * WIDTH + tokens % WIDTH
    offset = tl.cast(image, tl.int64) * strides[0]
    offset += y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2]
    return offset, (tokens < HEIGHT * WIDTH) & (y < size[0]) & (x < size[1])


@triton.jit
def _load(
    pointer, tokens, window, size, strides, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    channels = tl.arange(0, DEPTH)
    offset, exists = _tokens(tokens, window, size, strides, HEIGHT, WIDTH)
    here = exists[:, None] & (channels < CHANNELS)[None, :]
    return tl.load(pointer + (offset[:, None] + channels[None, :]), mask=here, other=0.0).to(DOT)


@triton.jit
def _store(
    pointer, values, tokens, window, size, strides, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    channels = tl.arange(0, DEPTH)
    offset, exists = _tokens(tokens, window, size, strides, HEIGHT, WIDTH)
    here = exists[:, None] & (channels < CHANNELS)[None, :]
    place = pointer + (offset[:, None] + channels[None, :])
    tl.store(place, values.to(pointer.dtype.element_ty), mask=here)


@triton.jit
def _matrix(window, CHANNELS: tl.constexpr, DEPTH: tl.constexpr):
    """Where a window's C x C matrix lies, and which of its padded numbers exist."""
    i, j = tl.arange(0, DEPTH)[:, None], tl.arange(0, DEPTH)[None, :]
    offset = tl.cast(window, tl.int64) * (CHANNELS * CHANNELS) + (i * CHANNELS + j)
    return offset, (i < CHANNELS) & (j < CHANNELS)


@triton.jit
def _mean(
    a_ptr, v_ptr, window, first, span, size, a_strides, v_strides,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """a^T v / n over span tokens of a window; n is the number of tokens that the window has."""
    rows, columns = (size[0] + HEIGHT - 1) // HEIGHT, (size[1] + WIDTH - 1) // WIDTH
    inside = window % (rows * columns)
    n = tl.minimum(size[0] - inside // columns * HEIGHT, HEIGHT)
    n *= tl.minimum(size[1] - inside % columns * WIDTH, WIDTH)
    total = tl.zeros([DEPTH, DEPTH], SUM)
    for start in range(0, span, BLOCK):
        tokens = first + start + tl.arange(0, BLOCK)
        a = _load(a_ptr, tokens, window, size, a_strides, HEIGHT, WIDTH, CHANNELS, DEPTH, DOT)
        v = _load(v_ptr, tokens, window, size, v_strides, HEIGHT, WIDTH, CHANNELS, DEPTH, DOT)
        total += tl.dot(tl.trans(a), v, input_precision="ieee")
    return total / n.to(SUM)


@triton.jit
def gram(
    a_ptr, v_ptr, partial_ptr, a_strides, v_strides, size, windows, span,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program (window, part of it): the part's a^T v / n to partial (parts, windows, C, C)."""
    window, part = tl.program_id(0), tl.program_id(1)
    mean = _mean(
        a_ptr, v_ptr, window, part * span, span, size, a_strides, v_strides,
        HEIGHT, WIDTH, CHANNELS, DEPTH, BLOCK, DOT, SUM,
    )  # fmt: skip
    place, exists = _matrix(tl.cast(part, tl.int64) * windows + window, CHANNELS, DEPTH)
    tl.store(partial_ptr + place, mean, mask=exists)


@triton.jit
def forward(
    q_ptr, v_ptr, m_ptr, out_ptr, q_strides, v_strides, out_strides, size, span,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """Program (window, part of it): v M^T; M is GIVEN, or made here of the only part."""
    window, first = tl.program_id(0), tl.program_id(1) * span
    if GIVEN:
        place, exists = _matrix(window, CHANNELS, DEPTH)
        m = tl.load(m_ptr + place, mask=exists, other=0.0)
    else:
        m = _mean(
            q_ptr, v_ptr, window, first, span, size, q_strides, v_strides,
            HEIGHT, WIDTH, CHANNELS, DEPTH, BLOCK, DOT, SUM,
        )  # fmt: skip
    transposed = tl.trans(m.to(DOT))
    for start in range(0, span, BLOCK):
        tokens = first + start + tl.arange(0, BLOCK)
        v = _load(v_ptr, tokens, window, size, v_strides, HEIGHT, WIDTH, CHANNELS, DEPTH, DOT)
        out = tl.dot(v, transposed, input_precision="ieee")
        _store(out_ptr, out, tokens, window, size, out_strides, HEIGHT, WIDTH, CHANNELS, DEPTH)


@triton.jit
def backward(
    q_ptr, v_ptr, grad_ptr, m_ptr, g_ptr, dq_ptr, dv_ptr,
    q_strides, v_strides, grad_strides, d_strides, size, span,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """Program (window, part of it): dq = v G^T and dv = g M + q G; M and G as in forward."""
    window, first = tl.program_id(0), tl.program_id(1) * span
    if GIVEN:
        place, exists = _matrix(window, CHANNELS, DEPTH)
        m = tl.load(m_ptr + place, mask=exists, other=0.0)
        g = tl.load(g_ptr + place, mask=exists, other=0.0)
    else:
        m = _mean(
            q_ptr, v_ptr, window, first, span, size, q_strides, v_strides,
            HEIGHT, WIDTH, CHANNELS, DEPTH, BLOCK, DOT, SUM,
        )  # fmt: skip
        g = _mean(
            grad_ptr, v_ptr, window, first, span, size, grad_strides, v_strides,
            HEIGHT, WIDTH, CHANNELS, DEPTH, BLOCK, DOT, SUM,
        )  # fmt: skip
    m, g = m.to(DOT), g.to(DOT)
    transposed = tl.trans(g)
    for start in range(0, span, BLOCK):
        tokens = first + start + tl.arange(0, BLOCK)
        q = _load(q_ptr, tokens, window, size, q_strides, HEIGHT, WIDTH, CHANNELS, DEPTH, DOT)
        v = _load(v_ptr, tokens, window, size, v_strides, HEIGHT, WIDTH, CHANNELS, DEPTH, DOT)
        grad = _load(
            grad_ptr, tokens, window, size, grad_strides, HEIGHT, WIDTH, CHANNELS, DEPTH, DOT
        )
        dq = tl.dot(v, transposed, input_precision="ieee")
        dv = tl.dot(grad, m, input_precision="ieee") + tl.dot(q, g, input_precision="ieee")
        _store(dq_ptr, dq, tokens, window, size, d_strides, HEIGHT, WIDTH, CHANNELS, DEPTH)
        _store(dv_ptr, dv, tokens, window, size, d_strides, HEIGHT, WIDTH, CHANNELS, DEPTH)
