"""The coordinate query in Triton, imported (with triton) at the first launch; see triton.py.

The idea: a program has 64 queries and keeps their channels in registers through all levels, so that
between the LR map and the RGB nothing of a query reaches memory. What it can it finds made:
  - level 0's LayerNorm and Linear over four gathered vectors: a table row for each LR pixel and tap
    (torch multiplies it), added up by the query's weights. The LayerNorm comes after it, from each
    pixel's mean and mean square about it, in which nothing cancels;
  - k^T v over all queries: `moments`, a pass before, whose programs leave one partial sum each for
    torch to add in fixed order; once it is known, it is one matrix with W_q and the Linear after.
    A decoder of n attentions makes n such passes; each begins again at the table.
MLPs go through CHUNK hidden channels at a time, which is what keeps registers few.

HIIF-L (64 channels, 3 levels, 4 heads) in bfloat16, a query: 560 bytes of table rows and their
statistics read in each pass, from L1 or L2, since the queries of an LR pixel share them; 64 bytes
of partial sums written and read again; 6 bytes of RGB. Of an LR pixel: 524 bytes of table, written
once, read from memory once a pass. Products after folding: 13,312 multiply-adds in the first pass
and 25,600 in the second, where the definition has 56,000.

Registers a thread, no spills (triton 3.9, sm_90; bfloat16 / float32):
               HIIF-L       HIIF (256 channels, bfloat16 only)
  moments      100 / 168    140
  decode       167 / 105    166
Shared memory a program: 4 and 34 KB in bfloat16, 24 KB in float32. In float32 more than 64 channels
spill at any size of block tried: refused.
"""

import triton
import triton.language as tl

from . import triton_tables

EPSILON = tl.constexpr(1e-5)  # of every LayerNorm
FIRST_VECTORS = tl.constexpr(triton_tables.FIRST_VECTORS)
LEVEL_VECTORS = tl.constexpr(triton_tables.LEVEL_VECTORS)
RGB = tl.constexpr(triton_tables.RGB)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def _queries(
    y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, size, count, columns, BLOCK: tl.constexpr,
    GRID: tl.constexpr,
):  # fmt: skip
    """A program's queries: their numbers, whether they exist, 4 LR pixels, weights, digits."""
    blocks = (count + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // blocks
    query = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = query < count
    query = tl.minimum(query, count - 1)  # repeats the last one past the end
    number = tl.cast(image, tl.int64) * count + query
    if GRID:
        line, column = query // columns, query % columns
    else:
        line, column = number, number
    y_low = tl.load(y_places_ptr + line * 3)
    y_high = tl.load(y_places_ptr + line * 3 + 1)
    x_low = tl.load(x_places_ptr + column * 3)
    x_high = tl.load(x_places_ptr + column * 3 + 1)
    digits = (tl.load(y_places_ptr + line * 3 + 2), tl.load(x_places_ptr + column * 3 + 2))
    low = (tl.cast(image, tl.int64) * size[0] + y_low) * size[1]
    high = (tl.cast(image, tl.int64) * size[0] + y_high) * size[1]
    y, x = tl.load(y_t_ptr + line), tl.load(x_t_ptr + column)
    pixels = (low + x_low, low + x_high, high + x_low, high + x_high)
    weights = ((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x)
    return image, number, exists, pixels, weights, digits


@triton.jit
def _digit(digits, LEVEL: tl.constexpr, SUM: tl.constexpr):
    return ((digits[0] >> LEVEL) & 1).to(SUM), ((digits[1] >> LEVEL) & 1).to(SUM)


@triton.jit
def _moments_of_first(image, pixels, weights, digits, stats_ptr, rel_ptr, CHANNELS: tl.constexpr):
    """Level 0's LayerNorm: scales of the table's rows, centred means, centred extras, 1/deviation.

    The input is four weighted feature vectors, rel_cell and two digits; each pixel's mean and mean
    square about it are known, so that nothing cancels.
    """
    SUM: tl.constexpr = stats_ptr.dtype.element_ty
    extras = (tl.load(rel_ptr + 2 * image), tl.load(rel_ptr + 2 * image + 1))
    extras = extras + _digit(digits, 0, SUM)
    total = extras[0] + extras[1] + extras[2] + extras[3]
    squares = tl.zeros_like(total)
    scales, means = (), ()
    for tap in tl.static_range(4):
        row = stats_ptr + 3 * pixels[tap]
        means = means + (weights[tap] * tl.load(row),)
        squares += CHANNELS * weights[tap] * weights[tap] * tl.load(row + 1)
        scales = scales + (weights[tap] * tl.load(row + 2),)
        total += CHANNELS * means[tap]
    mean = total / (4 * CHANNELS + 4)
    centred, rest = (), ()
    for tap in tl.static_range(4):
        centred = centred + (means[tap] - mean,)
        rest = rest + (extras[tap] - mean,)
        squares += CHANNELS * centred[tap] * centred[tap] + rest[tap] * rest[tap]
    return scales, centred, rest, 1.0 / tl.sqrt(squares / (4 * CHANNELS + 4) + EPSILON)


@triton.jit
def _first(
    pixels, scales, centred, rest, products_ptr, vectors_ptr, columns, DEPTH: tl.constexpr,
):  # fmt: skip
    """The first Linear of level 0 before its 1/deviation and bias: a gather-add."""
    SUM: tl.constexpr = vectors_ptr.dtype.element_ty
    total = tl.zeros([scales[0].shape[0], columns.shape[0]], SUM)
    for tap in tl.static_range(4):
        row = products_ptr + (pixels[tap] * 4 + tap) * DEPTH
        total += scales[tap][:, None] * tl.load(row[:, None] + columns[None, :]).to(SUM)
    for tap in tl.static_range(4):
        total += centred[tap][:, None] * tl.load(vectors_ptr + tap * DEPTH + columns)[None, :]
        total += rest[tap][:, None] * tl.load(vectors_ptr + (4 + tap) * DEPTH + columns)[None, :]
    return total


@triton.jit
def _level_0(
    image, pixels, weights, digits, stats_ptr, rel_ptr, products_ptr, matrices_ptr, vectors_ptr,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    scales, centred, rest, scale = _moments_of_first(
        image, pixels, weights, digits, stats_ptr, rel_ptr, CHANNELS
    )
    outputs = tl.arange(0, OUT)
    total = tl.zeros([scale.shape[0], OUT], SUM)
    for start in range(0, DEPTH, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        y = _first(pixels, scales, centred, rest, products_ptr, vectors_ptr, hidden, DEPTH)
        y = y * scale[:, None] + tl.load(vectors_ptr + 8 * DEPTH + hidden)[None, :]
        second = tl.load(matrices_ptr + (hidden[:, None] * DEPTH + outputs[None, :])).to(DOT)
        total += tl.dot(_gelu(y).to(DOT), second, input_precision="ieee")
    return total + tl.load(vectors_ptr + 9 * DEPTH + outputs)[None, :]


@triton.jit
def _norm(x, digit, CHANNELS: tl.constexpr, DEPTH: tl.constexpr):
    """LayerNorm of x beside two digits, its gain and offset folded into the Linear after it."""
    n: tl.constexpr = CHANNELS + 2
    mean = (tl.sum(x, 1) + digit[0] + digit[1]) / n
    x = tl.where((tl.arange(0, DEPTH) < CHANNELS)[None, :], x - mean[:, None], 0.0)
    y, z = digit[0] - mean, digit[1] - mean
    scale = 1.0 / tl.sqrt((tl.sum(x * x, 1) + y * y + z * z) / n + EPSILON)
    return x * scale[:, None], (y * scale, z * scale), scale


@triton.jit
def _before_gelu(
    x, digit, matrix_ptr, bias_ptr, digits_ptr, hidden, DEPTH: tl.constexpr, DIGITS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Some columns of a Linear of x, and of two digits if it has them."""
    inputs = tl.arange(0, DEPTH)
    matrix = tl.load(matrix_ptr + (inputs[:, None] * DEPTH + hidden[None, :])).to(DOT)
    y = tl.dot(x, matrix, input_precision="ieee") + tl.load(bias_ptr + hidden)[None, :]
    if DIGITS:
        y += digit[0][:, None] * tl.load(digits_ptr + hidden)[None, :]
        y += digit[1][:, None] * tl.load(digits_ptr + DEPTH + hidden)[None, :]
    return y, matrix


@triton.jit
def _mlp(
    x, digit, first_ptr, first_bias_ptr, digits_ptr, second_ptr, second_bias_ptr,
    DEPTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, DIGITS: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Linear, GELU, Linear, CHUNK hidden channels at a time."""
    outputs = tl.arange(0, OUT)
    total = tl.zeros([x.shape[0], OUT], SUM)
    for start in range(0, DEPTH, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        y = _before_gelu(
            x, digit, first_ptr, first_bias_ptr, digits_ptr, hidden, DEPTH, DIGITS, DOT
        )[0]
        second = tl.load(second_ptr + (hidden[:, None] * DEPTH + outputs[None, :])).to(DOT)
        total += tl.dot(_gelu(y).to(DOT), second, input_precision="ieee")
    return total + tl.load(second_bias_ptr + outputs)[None, :]


@triton.jit
def _levels(
    image, pixels, weights, digits, stats_ptr, rel_ptr, products_ptr, matrices_ptr, vectors_ptr,
    folds_ptr, offsets_ptr, batch, STOP: tl.constexpr, LEVELS: tl.constexpr,
    ATTENTIONS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The output of level STOP, with the attentions before it, and all states on the way to it:
    what level 0 gives, what becomes of that in attention 0, what level 1 gives, ...
    """
    states = ()
    last: tl.constexpr = LEVELS - 1
    x = _level_0(
        image, pixels, weights, digits, stats_ptr, rel_ptr, products_ptr, matrices_ptr,
        vectors_ptr, CHANNELS, DEPTH, CHUNK, RGB if last == 0 else DEPTH, DOT, SUM,
    )  # fmt: skip
    for level in tl.static_range(1, STOP + 1):
        states = states + (x,)
        if level <= ATTENTIONS:
            place = (level - 1) * batch + tl.cast(image, tl.int64)
            x += _mlp(
                x.to(DOT), digits, folds_ptr + place * DEPTH * DEPTH, offsets_ptr + place * DEPTH,
                vectors_ptr, matrices_ptr + (2 * last + level) * DEPTH * DEPTH,
                vectors_ptr + (FIRST_VECTORS + LEVEL_VECTORS * last + level - 1) * DEPTH,
                DEPTH, CHUNK, DEPTH, False, DOT, SUM,
            )  # fmt: skip
            states = states + (x,)
        x, digit, _ = _norm(x, _digit(digits, level, SUM), CHANNELS, DEPTH)
        first = matrices_ptr + (2 * level - 1) * DEPTH * DEPTH
        vectors = vectors_ptr + (FIRST_VECTORS + LEVEL_VECTORS * (level - 1)) * DEPTH
        x = _mlp(
            x.to(DOT), digit, first, vectors + 2 * DEPTH, vectors, first + DEPTH * DEPTH,
            vectors + 3 * DEPTH, DEPTH, CHUNK, RGB if level == last else DEPTH, True, DOT, SUM,
        )  # fmt: skip
    return x, states


@triton.jit
def _head(x, matrix_ptr, norms_ptr, HEAD: tl.constexpr, HEAD_DIM: tl.constexpr,
          DEPTH: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """LayerNorm of one head's keys or values, and what its backward takes."""
    columns = tl.arange(0, HEAD)
    matrix = tl.load(matrix_ptr + (tl.arange(0, DEPTH)[:, None] * HEAD + columns[None, :])).to(DOT)
    y = tl.dot(x, matrix, input_precision="ieee") + tl.load(norms_ptr + columns)[None, :]
    mean = tl.sum(y, 1) / HEAD_DIM
    y = tl.where((columns < HEAD_DIM)[None, :], y - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, 1) / HEAD_DIM + EPSILON)
    y *= scale[:, None]
    gain = tl.load(norms_ptr + HEAD + columns)[None, :]
    offset = tl.load(norms_ptr + 2 * HEAD + columns)[None, :]
    return y * gain + offset, y, gain, scale, matrix


@triton.jit
def moments(
    products_ptr, stats_ptr, y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, rel_ptr, matrices_ptr,
    vectors_ptr, folds_ptr, offsets_ptr, keys_ptr, norms_ptr, partial_ptr, size, batch, count,
    columns, STOP: tl.constexpr, LEVELS: tl.constexpr, ATTENTIONS: tl.constexpr,
    HEADS: tl.constexpr, HEAD: tl.constexpr, HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, GRID: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program: a block of an image's queries, k^T v of them in attention STOP, head by head."""
    image, _, exists, pixels, weights, digits = _queries(
        y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, size, count, columns, BLOCK, GRID
    )
    x, _ = _levels(
        image, pixels, weights, digits, stats_ptr, rel_ptr, products_ptr, matrices_ptr,
        vectors_ptr, folds_ptr, offsets_ptr, batch, STOP, LEVELS, ATTENTIONS, CHANNELS, DEPTH,
        CHUNK, DOT, SUM,
    )  # fmt: skip
    x = x.to(DOT)
    i, j = tl.arange(0, HEAD)[:, None], tl.arange(0, HEAD)[None, :]
    place = tl.cast(tl.program_id(0), tl.int64) * (HEADS * HEAD_DIM * HEAD_DIM) + i * HEAD_DIM + j
    for head in range(HEADS):
        key, value = STOP * 2 * HEADS + head, (STOP * 2 + 1) * HEADS + head
        k = _head(
            x, keys_ptr + key * DEPTH * HEAD, norms_ptr + key * 3 * HEAD, HEAD, HEAD_DIM, DEPTH,
            DOT,
        )[0]  # fmt: skip
        v = _head(
            x, keys_ptr + value * DEPTH * HEAD, norms_ptr + value * 3 * HEAD, HEAD, HEAD_DIM,
            DEPTH, DOT,
        )[0]  # fmt: skip
        k = tl.where(exists[:, None], k, 0.0).to(DOT)
        moment = tl.dot(tl.trans(k), v.to(DOT), input_precision="ieee")
        here = (i < HEAD_DIM) & (j < HEAD_DIM)
        tl.store(partial_ptr + place + head * HEAD_DIM * HEAD_DIM, moment, mask=here)


@triton.jit
def decode(
    products_ptr, stats_ptr, y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, rel_ptr, matrices_ptr,
    vectors_ptr, folds_ptr, offsets_ptr, image_ptr, out_ptr, size, batch, count, columns,
    LEVELS: tl.constexpr, ATTENTIONS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, GRID: tl.constexpr, DOT: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Program: a block of an image's queries, their RGB."""
    image, number, exists, pixels, weights, digits = _queries(
        y_places_ptr, y_t_ptr, x_places_ptr, x_t_ptr, size, count, columns, BLOCK, GRID
    )
    rgb, _ = _levels(
        image, pixels, weights, digits, stats_ptr, rel_ptr, products_ptr, matrices_ptr,
        vectors_ptr, folds_ptr, offsets_ptr, batch, LEVELS - 1, LEVELS, ATTENTIONS, CHANNELS,
        DEPTH, CHUNK, DOT, SUM,
    )  # fmt: skip
    colour = tl.arange(0, RGB)[None, :]
    for tap in tl.static_range(4):
        place = image_ptr + (pixels[tap][:, None] * 3 + colour)
        base = tl.load(place, mask=(colour < 3) & exists[:, None], other=0.0).to(SUM)
        rgb += weights[tap][:, None] * base
    place = out_ptr + (number[:, None] * 3 + colour)
    tl.store(place, rgb.to(out_ptr.dtype.element_ty), mask=(colour < 3) & exists[:, None])
