"""The coordinate query's backward in Triton; triton_backward.py says how it goes.

Every kernel has a block of queries and one step of the decoder: it makes the step's inner values
again, and writes dx over rows of C numbers and the rows that torch multiplies to the gradients of
the step's matrices. `sum_by_pixel` then adds up what queries give to LR pixels.

Traffic of HIIF-L in bfloat16, a query: `keep_states` writes 3 rows of 128 bytes; an MLP reads 384
bytes and writes 644, 512 after the attention; k^T v reads 384 and writes 512; level 0 reads 816
(560 of them from the table) and writes 468; `sum_by_pixel` reads 4 rows of 256 and 48 more.

Registers a thread, no spills (triton 3.9, sm_90; bfloat16 / float32):
  keep_states                    128 / 104
  mlp                            148 / 246
  mlp after an attention         144 / 227
  attention                      116 / 255
  first_mlp                      172 / 138
  sum_by_pixel                    56 / 72
Shared memory a program: up to 24 KB. HIIF's 256 channels in bfloat16: 158 to 255 registers, and
keep_states spills 128 bytes.
"""

import triton
import triton.language as tl

from .triton_kernels import (
    FIRST_VECTORS,
    LEVEL_VECTORS,
    RGB,
    _before_gelu,
    _digit,
    _first,
    _gelu,
    _head,
    _levels,
    _moments_of_first,
    _norm,
    _queries,
)


@triton.jit
def _slope(x):
    """The derivative of GELU."""
    bell = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) + x * bell


@triton.jit
def _store(pointer, values, exists):
    tl.store(pointer, values.to(pointer.dtype.element_ty), mask=exists[:, None])


@triton.jit
def _gradient(dy_ptr, number, exists, stride, OUT: tl.constexpr, SUM: tl.constexpr):
    """Rows of dy: RGB's three numbers, padded with zeros, or all channels."""
    columns = tl.arange(0, OUT)
    here = exists[:, None] & (columns < stride)[None, :]
    place = dy_ptr + (number[:, None] * stride + columns[None, :])
    return tl.load(place, mask=here, other=0.0).to(SUM)


@triton.jit
def keep_states(
    products_ptr, stats_ptr, y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, rel_ptr, matrices_ptr,
    vectors_ptr, folds_ptr, offsets_ptr, states_ptr, size, batch, count, columns,
    LEVELS: tl.constexpr, ATTENTIONS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, GRID: tl.constexpr, DOT: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Program: a block of an image's queries, the inputs of all MLPs but the first."""
    image, number, exists, pixels, weights, digits = _queries(
        y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, size, count, columns, BLOCK, GRID
    )
    _, states = _levels(
        image, pixels, weights, digits, stats_ptr, rel_ptr, products_ptr, matrices_ptr,
        vectors_ptr, folds_ptr, offsets_ptr, batch, LEVELS - 1, LEVELS, ATTENTIONS, CHANNELS,
        DEPTH, CHUNK, DOT, SUM,
    )  # fmt: skip
    channels = tl.arange(0, DEPTH)[None, :]
    for i in tl.static_range(LEVELS - 1 + ATTENTIONS):
        row = i * tl.cast(batch, tl.int64) * count + number
        _store(states_ptr + (row[:, None] * DEPTH + channels), states[i], exists)


@triton.jit
def mlp(
    x_ptr, dy_ptr, dx_ptr, normed_ptr, hidden_ptr, dhidden_ptr, y_places_ptr, y_t_ptr,
    x_places_ptr, x_t_ptr, matrices_ptr, vectors_ptr, folds_ptr, offsets_ptr, size, batch, count,
    columns, dy_stride, LEVEL: tl.constexpr, ATTENTION: tl.constexpr, LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    GRID: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program: a block of an image's queries through one MLP backwards, to dx and to the rows that
    its weights' gradients are products of.

    The MLP is that of LEVEL, or the two Linears after the attention of that level (ATTENTION),
    which have no norm and to which x is added.
    """
    last: tl.constexpr = LEVELS - 1
    OUT: tl.constexpr = RGB if last == LEVEL else DEPTH
    image, number, exists, _, _, digits = _queries(
        y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, size, count, columns, BLOCK, GRID
    )
    channels, outputs = tl.arange(0, DEPTH), tl.arange(0, OUT)
    x = tl.load(x_ptr + (number[:, None] * DEPTH + channels[None, :])).to(SUM)
    dy = _gradient(dy_ptr, number, exists, dy_stride, OUT, SUM)
    if ATTENTION:
        fold = LEVEL * batch + tl.cast(image, tl.int64)
        first_ptr, bias_ptr = folds_ptr + fold * DEPTH * DEPTH, offsets_ptr + fold * DEPTH
        second_ptr = matrices_ptr + (2 * last + LEVEL + 1) * DEPTH * DEPTH
        digits_ptr, digit, scale = vectors_ptr, digits, 1.0
    else:
        first_ptr = matrices_ptr + (2 * LEVEL - 1) * DEPTH * DEPTH
        second_ptr = first_ptr + DEPTH * DEPTH
        digits_ptr = vectors_ptr + (FIRST_VECTORS + LEVEL_VECTORS * (LEVEL - 1)) * DEPTH
        bias_ptr = digits_ptr + 2 * DEPTH
        x, digit, scale = _norm(x, _digit(digits, LEVEL, SUM), CHANNELS, DEPTH)
        row = normed_ptr + number * (DEPTH + 2)
        _store(row[:, None] + channels[None, :], x, exists)
        tl.store(row + DEPTH, digit[0].to(normed_ptr.dtype.element_ty), mask=exists)
        tl.store(row + DEPTH + 1, digit[1].to(normed_ptr.dtype.element_ty), mask=exists)
    dx = tl.zeros([BLOCK, DEPTH], SUM)
    dy_digit, dx_digit = tl.zeros([BLOCK], SUM), tl.zeros([BLOCK], SUM)
    for start in range(0, DEPTH, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        y, first = _before_gelu(
            x.to(DOT), digit, first_ptr, bias_ptr, digits_ptr, inner, DEPTH, not ATTENTION, DOT
        )
        second = tl.load(second_ptr + (inner[:, None] * DEPTH + outputs[None, :])).to(DOT)
        dhidden = tl.dot(dy.to(DOT), tl.trans(second), input_precision="ieee") * _slope(y)
        place = number[:, None] * DEPTH + inner[None, :]
        _store(hidden_ptr + place, _gelu(y), exists)
        _store(dhidden_ptr + place, dhidden, exists)
        dx += tl.dot(dhidden.to(DOT), tl.trans(first), input_precision="ieee")
        if not ATTENTION:
            dy_digit += tl.sum(dhidden * tl.load(digits_ptr + inner)[None, :], 1)
            dx_digit += tl.sum(dhidden * tl.load(digits_ptr + DEPTH + inner)[None, :], 1)
    if ATTENTION:
        dx += dy
    else:
        n: tl.constexpr = CHANNELS + 2
        mean = (tl.sum(dx, 1) + dy_digit + dx_digit) / n
        along = (tl.sum(dx * x, 1) + dy_digit * digit[0] + dx_digit * digit[1]) / n
        dx = (dx - mean[:, None] - along[:, None] * x) * scale[:, None]
        dx = tl.where((channels < CHANNELS)[None, :], dx, 0.0)
    _store(dx_ptr + (number[:, None] * DEPTH + channels[None, :]), dx, exists)


@triton.jit
def attention(
    x_ptr, dmoment_ptr, dx_ptr, dheads_ptr, keys_ptr, norms_ptr, partial_ptr, count,
    INDEX: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, HEAD_DIM: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program: a block of an image's queries, from k^T v's gradient to more dx, to the rows dk and
    dv before their LayerNorms, and to partial sums of those norms' gains and offsets.
    """
    blocks = (count + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // blocks
    query = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = query < count
    number = tl.cast(image, tl.int64) * count + tl.minimum(query, count - 1)
    channels, columns = tl.arange(0, DEPTH), tl.arange(0, HEAD)
    x = tl.load(x_ptr + (number[:, None] * DEPTH + channels[None, :])).to(DOT)
    total = tl.load(dx_ptr + (number[:, None] * DEPTH + channels[None, :]))
    for i in range(2 * HEADS):  # a loop, not two: unrolled over keys and values, float32 spilled
        part, head = i // HEADS, i % HEADS
        mine, other = INDEX * 2 * HEADS + i, (INDEX * 2 + 1 - part) * HEADS + head
        y = _head(
            x, keys_ptr + other * DEPTH * HEAD, norms_ptr + other * 3 * HEAD, HEAD, HEAD_DIM,
            DEPTH, DOT,
        )[0]  # fmt: skip
        # dk = v dM^T, dv = k dM
        row_stride, column_stride = 1 + part * (HEAD - 1), HEAD - part * (HEAD - 1)
        square = columns[:, None] * row_stride + columns[None, :] * column_stride
        dmoment = tl.load(dmoment_ptr + (image * HEADS + head) * HEAD * HEAD + square).to(DOT)
        gradient = tl.dot(y.to(DOT), dmoment, input_precision="ieee")
        gradient = tl.where(exists[:, None], gradient, 0.0)
        _, normed, gain, scale, matrix = _head(
            x, keys_ptr + mine * DEPTH * HEAD, norms_ptr + mine * 3 * HEAD, HEAD, HEAD_DIM, DEPTH,
            DOT,
        )  # fmt: skip
        sums = tl.cast(tl.program_id(0), tl.int64) * 2 * HEADS + i
        sums = partial_ptr + sums * 2 * HEAD + columns
        tl.store(sums, tl.sum(gradient * normed, 0))
        tl.store(sums + HEAD, tl.sum(gradient, 0))
        gradient *= gain
        mean, along = tl.sum(gradient, 1) / HEAD_DIM, tl.sum(gradient * normed, 1) / HEAD_DIM
        gradient = (gradient - mean[:, None] - along[:, None] * normed) * scale[:, None]
        gradient = tl.where((columns < HEAD_DIM)[None, :], gradient, 0.0)
        row = number * 2 * HEADS + i
        _store(dheads_ptr + (row[:, None] * HEAD + columns[None, :]), gradient, exists)
        total += tl.dot(gradient.to(DOT), tl.trans(matrix), input_precision="ieee")
    _store(dx_ptr + (number[:, None] * DEPTH + channels[None, :]), total, exists)


@triton.jit
def first_mlp(
    products_ptr, stats_ptr, y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, rel_ptr, matrices_ptr,
    vectors_ptr, dy_ptr, du_ptr, hidden_ptr, terms_ptr, shares_ptr, size, count, columns,
    dy_stride, LEVELS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, GRID: tl.constexpr, DOT: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Program: a block of an image's queries through level 0 backwards.

    With y = u / deviation + bias after the first Linear: rows du; terms (rows, 9), what du meets in
    the gradients of the vectors; shares (rows, 4, 3), what a query's du is multiplied by for each
    of its pixels' products, and what it adds to the gradients of that pixel's mean and mean square.
    """
    OUT: tl.constexpr = RGB if LEVELS == 1 else DEPTH
    n: tl.constexpr = 4 * CHANNELS + 4
    image, number, exists, pixels, weights, digits = _queries(
        y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, size, count, columns, BLOCK, GRID
    )
    scales, centred, rest, scale = _moments_of_first(
        image, pixels, weights, digits, stats_ptr, rel_ptr, CHANNELS
    )
    dy = _gradient(dy_ptr, number, exists, dy_stride, OUT, SUM).to(DOT)
    outputs = tl.arange(0, OUT)
    dscale, dmean = tl.zeros([BLOCK], SUM), tl.zeros([BLOCK], SUM)
    d0, d1 = tl.zeros([BLOCK], SUM), tl.zeros([BLOCK], SUM)
    d2, d3 = tl.zeros([BLOCK], SUM), tl.zeros([BLOCK], SUM)
    for start in range(0, DEPTH, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        u = _first(pixels, scales, centred, rest, products_ptr, vectors_ptr, inner, DEPTH)
        y = u * scale[:, None] + tl.load(vectors_ptr + 8 * DEPTH + inner)[None, :]
        second = tl.load(matrices_ptr + (inner[:, None] * DEPTH + outputs[None, :])).to(DOT)
        du = tl.dot(dy, tl.trans(second), input_precision="ieee") * _slope(y)
        dscale += tl.sum(du * u, 1)
        du *= scale[:, None]
        place = number[:, None] * DEPTH + inner[None, :]
        _store(hidden_ptr + place, _gelu(y), exists)
        _store(du_ptr + place, du, exists)
        d0 += tl.sum(du * tl.load(vectors_ptr + inner)[None, :], 1)
        d1 += tl.sum(du * tl.load(vectors_ptr + DEPTH + inner)[None, :], 1)
        d2 += tl.sum(du * tl.load(vectors_ptr + 2 * DEPTH + inner)[None, :], 1)
        d3 += tl.sum(du * tl.load(vectors_ptr + 3 * DEPTH + inner)[None, :], 1)
        for extra in tl.static_range(4):
            dmean -= tl.sum(du * tl.load(vectors_ptr + (4 + extra) * DEPTH + inner)[None, :], 1)
    # Of the variance: it takes no part in the mean's gradient, whose own terms in it sum to zero.
    dvariance = -0.5 * scale * scale * scale * dscale
    dcentred = (d0, d1, d2, d3)
    dmean -= d0 + d1 + d2 + d3
    terms, shares = terms_ptr + number * 9, shares_ptr + number * 12
    for tap in tl.static_range(4):
        tl.store(terms + tap, centred[tap], mask=exists)
        tl.store(terms + 4 + tap, rest[tap], mask=exists)
        dpixel = dcentred[tap] + (dmean + 2 * dvariance * centred[tap]) * CHANNELS / n
        dsquare = weights[tap] * weights[tap] * dvariance * CHANNELS / n
        tl.store(shares + 3 * tap, scales[tap], mask=exists)
        tl.store(shares + 3 * tap + 1, weights[tap] * dpixel, mask=exists)
        tl.store(shares + 3 * tap + 2, dsquare, mask=exists)
    tl.store(terms + 8, 1.0 / scale, mask=exists)


@triton.jit
def sum_by_pixel(
    rows_ptr, shares_ptr, order_ptr, starts_ptr, sums_ptr, dstats_ptr, places,
    DEPTH: tl.constexpr, PLACES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program: PLACES (pixel, tap) pairs, the sum over the queries of each, in their order.

    order lists (query, tap) pairs by place; those of place i begin at starts[i].
    """
    place = tl.cast(tl.program_id(0), tl.int64) * PLACES + tl.arange(0, PLACES)
    here = place < places
    begin = tl.load(starts_ptr + place, mask=here, other=0)
    length = tl.load(starts_ptr + place + 1, mask=here, other=0) - begin
    columns = tl.arange(0, DEPTH)[None, :]
    total = tl.zeros([PLACES, DEPTH], SUM)
    dmean, dsquare = tl.zeros([PLACES], SUM), tl.zeros([PLACES], SUM)
    for i in range(0, tl.max(length, 0)):
        more = i < length
        pair = tl.load(order_ptr + begin + i, mask=more, other=0)
        share = tl.load(shares_ptr + pair * 3, mask=more, other=0.0)
        row = rows_ptr + (pair // 4 * DEPTH)[:, None] + columns
        total += share[:, None] * tl.load(row, mask=more[:, None], other=0.0).to(SUM)
        dmean += tl.load(shares_ptr + pair * 3 + 1, mask=more, other=0.0)
        dsquare += tl.load(shares_ptr + pair * 3 + 2, mask=more, other=0.0)
    _store(sums_ptr + (place[:, None] * DEPTH + columns), total, here)
    tl.store(dstats_ptr + place * 2, dmean, mask=here)
    tl.store(dstats_ptr + place * 2 + 1, dsquare, mask=here)
