"""Spatial correlation in Triton, imported (with triton) at the first launch; see triton.py.

`out = q G + P p` in each window and head: p is v reduced to K <= 64 cells by a Linear, `G = p^T p /
d`, and P (N x K) the bias of each token to each cell. Backward, with `D = q^T g / d` for a gradient
g: `dq = g G` and `dp = p (D + D^T) + P^T g`; the Linear's adjoint makes dv and dweight of dp; the
table gets `dP = g p^T`, summed over windows.

The idea: the mean of the bias over a cell is an average pool of the table, which torch makes before
the launch; tiles of P are then read from it where they are needed, and P is not stored. A program
has at most 512 tokens. A window of no more (up to 22x22) is one program, which makes p in registers
of v. A larger one is split: `reduce` leaves p, a small map; each part leaves its share of dp (which
is linear in the part), and `spread` adds the shares in fixed order and makes dv. Where windows are
few, heads are programs too. Each program of `backward_bias` walks a run of windows and keeps the
sum of its tile of dP in registers; torch adds up the runs, then the pairs that share an offset.

Traffic a token, C = 30 (6 heads of 5) in bfloat16: windows of 8x8 read 120 bytes and write 60 for
4,500 operations, 25 a byte; backward reads 300 and writes 120. Windows of 64x64 read 128 and write
61; backward reads 383, of which 60 are p, met once for each of 64 tiles, from L2, and writes 136.
The pooled table is 5.4 KB (8x8) or 346 KB (64x64). Sums of dP: at most 128 of 98 KB (8x8) or 3 of
6.3 MB (64x64) a call. Never run on a GPU: no time is measured.

Registers a thread, no spills (triton 3.9, sm_90, heads of 5; bfloat16 / float32):
                     4x4        8x8         16x16       64x64       64x64, heads of 30
  reduce                                                 48 / 48     64 / 64
  forward            61 / 56     78 / 64     77 / 56    104 / 64    102 / 64
  backward           96 / 72    146 / 118   150 / 119    96 / 121   189 / 182
  spread                                                 56 / 56     72 / 72
  backward_bias      40 / 42    128 / 98    128 / 94     95 / 112    64 / 114
Shared memory a program: 1 to 18 KB in bfloat16, 2 to 28 KB in float32. Heads of 17 to 32 channels
spill up to 24 bytes in float32 in small windows. With 32-bit offsets inside a window registers fell
by up to 40 %, but ptxas then aimed lower and spilled up to 32 bytes.
"""

import triton
import triton.language as tl


@triton.jit
def _corner(window, size, strides, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Where the first token of a window lies, 64 bit; size is (rows, columns) of windows."""
    image, inside = window // (size[0] * size[1]), window % (size[0] * size[1])
    offset = tl.cast(image, tl.int64) * strides[0]
    offset += tl.cast(inside // size[1] * HEIGHT, tl.int64) * strides[1]
    return offset + tl.cast(inside % size[1] * WIDTH, tl.int64) * strides[2]


@triton.jit
def _places(tokens, channels, corner, strides, WIDTH: tl.constexpr):
    """(tokens, channels): where they lie."""
    offset = corner + (tokens // WIDTH).to(tl.int64) * strides[1]
    offset += (tokens % WIDTH).to(tl.int64) * strides[2]
    return offset[:, None] + channels[None, :]


@triton.jit
def _bias(
    table, tokens, cells, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    BASE_HEIGHT: tl.constexpr, BASE_WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of P^T, from a head's pooled table.

    Transposed, since tokens beside each other read neighbours there, and cells read ACROSS apart.
    """
    DOWN: tl.constexpr = HEIGHT // BASE_HEIGHT
    ACROSS: tl.constexpr = WIDTH // BASE_WIDTH
    SPAN: tl.constexpr = 2 * WIDTH - ACROSS
    token_part = (tokens // WIDTH + HEIGHT - DOWN) * SPAN + tokens % WIDTH + WIDTH - ACROSS
    cell_part = cells // BASE_WIDTH * (DOWN * SPAN) + cells % BASE_WIDTH * ACROSS
    inside = (cells < BASE_HEIGHT * BASE_WIDTH)[:, None] & (tokens < HEIGHT * WIDTH)[None, :]
    return tl.load(table + (token_part[None, :] - cell_part[:, None]), mask=inside, other=0.0)


@triton.jit
def _linear(
    v_ptr, weight_ptr, weight_bias_ptr, places, here, strides, area,
    ACROSS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The Linear over the tokens of cells whose first tokens lie at places."""
    p = tl.zeros(places.shape, SUM)
    for token in range(area):
        step = token // ACROSS * strides[1] + token % ACROSS * strides[2]
        v = tl.load(v_ptr + (places + step), mask=here, other=0.0).to(SUM)
        p += tl.load(weight_ptr + token) * v
    return tl.where(here, p + tl.load(weight_bias_ptr), 0.0)


@triton.jit
def _undo_linear(
    dp, v_ptr, weight_ptr, dv_ptr, dweight_ptr, places, d_places, here, strides, d_strides, area,
    ACROSS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """dv of the cells' tokens, and what these add to dweight; dweight_bias comes after it."""
    for token in range(area):
        y, x = token // ACROSS, token % ACROSS
        v = tl.load(v_ptr + (places + (y * strides[1] + x * strides[2])), mask=here, other=0.0)
        dv = (tl.load(weight_ptr + token) * dp).to(dv_ptr.dtype.element_ty)
        tl.store(dv_ptr + (d_places + (y * d_strides[1] + x * d_strides[2])), dv, mask=here)
        tl.store(dweight_ptr + token, tl.sum(v.to(SUM) * dp))
    tl.store(dweight_ptr + area, tl.sum(dp))


@triton.jit
def _cells(
    v_ptr, weight_ptr, weight_bias_ptr, window, head, size, strides, area,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BASE_HEIGHT: tl.constexpr, BASE_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, CELLS: tl.constexpr, SUM: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """p of a window and head, the places of the cells' first tokens, and which cells exist.

    GIVEN: v is p already, a map with a pixel for each cell.
    """
    DOWN: tl.constexpr = HEIGHT // BASE_HEIGHT
    ACROSS: tl.constexpr = WIDTH // BASE_WIDTH
    cells, depth = tl.arange(0, CELLS), tl.arange(0, DEPTH)
    here = (cells < BASE_HEIGHT * BASE_WIDTH)[:, None] & (depth < HEAD_DIM)[None, :]
    channels = head * HEAD_DIM + depth
    if GIVEN:
        corner = _corner(window, size, strides, BASE_HEIGHT, BASE_WIDTH)
        places = _places(cells, channels, corner, strides, BASE_WIDTH)
        p = tl.load(v_ptr + places, mask=here, other=0.0).to(SUM)
    else:
        corner = _corner(window, size, strides, HEIGHT, WIDTH)
        first = cells // BASE_WIDTH * (DOWN * WIDTH) + cells % BASE_WIDTH * ACROSS
        places = _places(first, channels, corner, strides, WIDTH)
        p = _linear(
            v_ptr, weight_ptr, weight_bias_ptr, places, here, strides, area, ACROSS, SUM
        )  # fmt: skip
    return p, places, here


@triton.jit
def reduce(
    v_ptr, weight_ptr, weight_bias_ptr, p_ptr, v_strides, p_strides, size, channels, pixels, area,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Program (block of cells, of channels): p, a map of size (rows, columns) with pixels cells."""
    cells = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    here = (cells < pixels)[:, None] & (depth < channels)[None, :]
    places = _corner(cells, size, v_strides, DOWN, ACROSS)[:, None] + depth[None, :]
    p = _linear(v_ptr, weight_ptr, weight_bias_ptr, places, here, v_strides, area, ACROSS, SUM)
    places = _corner(cells, size, p_strides, 1, 1)[:, None] + depth[None, :]
    tl.store(p_ptr + places, p.to(p_ptr.dtype.element_ty), mask=here)


@triton.jit
def forward(
    q_ptr, v_ptr, weight_ptr, weight_bias_ptr, table_ptr, out_ptr,
    q_strides, v_strides, out_strides, size, heads, group, area, span,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BASE_HEIGHT: tl.constexpr, BASE_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Program (window, part of it, group of heads): q G + P p."""
    POOLED: tl.constexpr = (2 * HEIGHT - HEIGHT // BASE_HEIGHT) * (2 * WIDTH - WIDTH // BASE_WIDTH)
    window, start = tl.program_id(0), tl.program_id(1) * span
    first = tl.program_id(2) * group
    depth, cells = tl.arange(0, DEPTH), tl.arange(0, CELLS)
    for head in range(first, tl.minimum(first + group, heads)):
        p, _, _ = _cells(
            v_ptr, weight_ptr, weight_bias_ptr, window, head, size, v_strides, area,
            HEIGHT, WIDTH, BASE_HEIGHT, BASE_WIDTH, HEAD_DIM, DEPTH, CELLS, SUM, GIVEN,
        )  # fmt: skip
        p = p.to(DOT)
        gram = (tl.dot(tl.trans(p), p, input_precision="ieee") / HEAD_DIM).to(DOT)
        channels = head * HEAD_DIM + depth
        q_corner = _corner(window, size, q_strides, HEIGHT, WIDTH)
        out_corner = _corner(window, size, out_strides, HEIGHT, WIDTH)
        for block in range(0, span, BLOCK):
            tokens = start + block + tl.arange(0, BLOCK)
            here = (tokens < HEIGHT * WIDTH)[:, None] & (depth < HEAD_DIM)[None, :]
            q_places = _places(tokens, channels, q_corner, q_strides, WIDTH)
            q = tl.load(q_ptr + q_places, mask=here, other=0.0).to(DOT)
            bias = _bias(
                table_ptr + head * POOLED, tokens, cells, HEIGHT, WIDTH, BASE_HEIGHT, BASE_WIDTH
            )
            out = tl.dot(q, gram, input_precision="ieee")
            out += tl.dot(tl.trans(bias.to(DOT)), p, input_precision="ieee")
            places = _places(tokens, channels, out_corner, out_strides, WIDTH)
            tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def backward(
    q_ptr, v_ptr, weight_ptr, weight_bias_ptr, table_ptr, grad_ptr,
    dq_ptr, dv_ptr, dweight_ptr, partial_ptr,
    q_strides, v_strides, grad_strides, d_strides, size, heads, group, area, span,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BASE_HEIGHT: tl.constexpr, BASE_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Program (window, part of it, group of heads): dq = g G, and p (D + D^T) + P^T g of the part.

    The latter is dp if the part is the window: it goes on to dv, and dweight (windows, heads,
    area + 1). Where p is GIVEN it is left to partial (parts, the map of p).
    """
    POOLED: tl.constexpr = (2 * HEIGHT - HEIGHT // BASE_HEIGHT) * (2 * WIDTH - WIDTH // BASE_WIDTH)
    window, start = tl.program_id(0), tl.program_id(1) * span
    first = tl.program_id(2) * group
    depth, cells = tl.arange(0, DEPTH), tl.arange(0, CELLS)
    for head in range(first, tl.minimum(first + group, heads)):
        p, v_places, cells_here = _cells(
            v_ptr, weight_ptr, weight_bias_ptr, window, head, size, v_strides, area,
            HEIGHT, WIDTH, BASE_HEIGHT, BASE_WIDTH, HEAD_DIM, DEPTH, CELLS, SUM, GIVEN,
        )  # fmt: skip
        p = p.to(DOT)
        gram = (tl.dot(tl.trans(p), p, input_precision="ieee") / HEAD_DIM).to(DOT)
        channels = head * HEAD_DIM + depth
        q_corner = _corner(window, size, q_strides, HEIGHT, WIDTH)
        grad_corner = _corner(window, size, grad_strides, HEIGHT, WIDTH)
        d_corner = _corner(window, size, d_strides, HEIGHT, WIDTH)
        dgram = tl.zeros([DEPTH, DEPTH], SUM)
        dp = tl.zeros([CELLS, DEPTH], SUM)
        for block in range(0, span, BLOCK):
            tokens = start + block + tl.arange(0, BLOCK)
            here = (tokens < HEIGHT * WIDTH)[:, None] & (depth < HEAD_DIM)[None, :]
            q_places = _places(tokens, channels, q_corner, q_strides, WIDTH)
            q = tl.load(q_ptr + q_places, mask=here, other=0.0).to(DOT)
            grad_places = _places(tokens, channels, grad_corner, grad_strides, WIDTH)
            grad = tl.load(grad_ptr + grad_places, mask=here, other=0.0).to(DOT)
            dq = tl.dot(grad, gram, input_precision="ieee")
            d_places = _places(tokens, channels, d_corner, d_strides, WIDTH)
            tl.store(dq_ptr + d_places, dq.to(dq_ptr.dtype.element_ty), mask=here)
            bias = _bias(
                table_ptr + head * POOLED, tokens, cells, HEIGHT, WIDTH, BASE_HEIGHT, BASE_WIDTH
            )
            dgram += tl.dot(tl.trans(q), grad, input_precision="ieee")
            dp += tl.dot(bias.to(DOT), grad, input_precision="ieee")
        both = ((dgram + tl.trans(dgram)) / HEAD_DIM).to(DOT)
        dp += tl.dot(p, both, input_precision="ieee")
        if GIVEN:
            numbers = tl.cast(tl.num_programs(0), tl.int64) * (BASE_HEIGHT * BASE_WIDTH * HEAD_DIM)
            part_ptr = partial_ptr + tl.program_id(1) * (numbers * heads)
            tl.store(part_ptr + v_places, dp, mask=cells_here)
        else:
            DOWN: tl.constexpr = HEIGHT // BASE_HEIGHT
            ACROSS: tl.constexpr = WIDTH // BASE_WIDTH
            tokens = cells // BASE_WIDTH * (DOWN * WIDTH) + cells % BASE_WIDTH * ACROSS
            row = tl.cast(window, tl.int64) * heads + head
            _undo_linear(
                dp, v_ptr, weight_ptr, dv_ptr, dweight_ptr + row * (area + 1),
                v_places, _places(tokens, channels, d_corner, d_strides, WIDTH), cells_here,
                v_strides, d_strides, area, ACROSS, SUM,
            )  # fmt: skip


@triton.jit
def spread(
    partial_ptr, v_ptr, weight_ptr, dv_ptr, dweight_ptr, p_strides, v_strides, d_strides,
    size, channels, pixels, area, parts,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Program (block of cells, of channels): the parts' dp added up, dv, and a row of dweight."""
    cells = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    here = (cells < pixels)[:, None] & (depth < channels)[None, :]
    places = _corner(cells, size, p_strides, 1, 1)[:, None] + depth[None, :]
    dp = tl.zeros([BLOCK, DEPTH], SUM)
    for part in range(parts):
        at = partial_ptr + tl.cast(part, tl.int64) * pixels * channels
        dp += tl.load(at + places, mask=here, other=0.0)
    row = tl.cast(tl.program_id(0), tl.int64) * tl.num_programs(1) + tl.program_id(1)
    _undo_linear(
        dp, v_ptr, weight_ptr, dv_ptr, dweight_ptr + row * (area + 1),
        _corner(cells, size, v_strides, DOWN, ACROSS)[:, None] + depth[None, :],
        _corner(cells, size, d_strides, DOWN, ACROSS)[:, None] + depth[None, :],
        here, v_strides, d_strides, area, ACROSS, SUM,
    )  # fmt: skip


@triton.jit
def backward_bias(
    v_ptr, weight_ptr, weight_bias_ptr, grad_ptr, partial_ptr, v_strides, grad_strides,
    size, heads, windows, run, area,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BASE_HEIGHT: tl.constexpr, BASE_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr, DEPTH: tl.constexpr, CELLS: tl.constexpr, TILE: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Program (head, run of windows, tile of tokens): dP of the run to (runs, heads, N, K)."""
    BASE: tl.constexpr = BASE_HEIGHT * BASE_WIDTH
    head, first = tl.program_id(0), tl.program_id(1) * run
    tokens = tl.program_id(2) * TILE + tl.arange(0, TILE)
    depth, cells = tl.arange(0, DEPTH), tl.arange(0, CELLS)
    here = (tokens < HEIGHT * WIDTH)[:, None] & (depth < HEAD_DIM)[None, :]
    total = tl.zeros([TILE, CELLS], SUM)
    for window in range(first, tl.minimum(first + run, windows)):
        p, _, _ = _cells(
            v_ptr, weight_ptr, weight_bias_ptr, window, head, size, v_strides, area,
            HEIGHT, WIDTH, BASE_HEIGHT, BASE_WIDTH, HEAD_DIM, DEPTH, CELLS, SUM, GIVEN,
        )  # fmt: skip
        corner = _corner(window, size, grad_strides, HEIGHT, WIDTH)
        places = _places(tokens, head * HEAD_DIM + depth, corner, grad_strides, WIDTH)
        grad = tl.load(grad_ptr + places, mask=here, other=0.0).to(DOT)
        total += tl.dot(grad, tl.trans(p.to(DOT)), input_precision="ieee")
    inside = (tokens < HEIGHT * WIDTH)[:, None] & (cells < BASE)[None, :]
    row = tl.cast(tl.program_id(1) * heads + head, tl.int64) * (HEIGHT * WIDTH)
    places = (row + tokens)[:, None] * BASE + cells[None, :]
    tl.store(partial_ptr + places, total, mask=inside)
