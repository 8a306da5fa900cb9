"""Window attention in Triton: `window_attention` and `permuted_window_attention` on the GPU.

This module imports triton and is itself imported at the first launch (see triton.py).

The idea: roll, partition, permutation, mask and reverse are addresses. A program has one window,
walks its heads, reads q, k and v where the Linear left them, and keeps scores and softmax in
registers; no (windows, N, N) tensor exists. Keys are met in blocks, with a running maximum and sum.

One address rule serves both operators. A key is a cell of CELL x CELL tokens (1: Swin, 2: SRFormer)
whose channels are stacked: channel j of its C lies in token j // (C / CELL^2), so a head may
straddle tokens. Its bias is table[q - k], q and k being linear in the coordinates.

The backward has no help from the forward: what the softmax needs is cheaper to compute again than
to keep. Gradients have owners, so nothing is added atomically:
  - a window of one tile (Swin's 8x8): `backward_tile` makes dq, dk and dv of one head in a fixed
    run of windows, and sums dS over the run in float32 registers for the bias;
  - else `backward_queries` (dq, and the rows' statistics), `backward_keys` (dk, dv), and
    `backward_tile` again, for the bias alone.

Traffic, for a window of 8x8 and C = 60 in bfloat16: forward 23,040 bytes read and 7,680 written
for 983,040 operations, 32 a byte; backward 30,720 and 23,040, and once a call at most 128 partial
sums of heads * 64 * 64 floats for the bias. A window of several query blocks reads its keys once
for each, from L1 or L2.

Registers a thread, no spills (triton 3.9, sm_90, head_dim 10; bfloat16 / float32):
                     8x8         16x16       SRFormer 16x16
  forward            113 / 128   152 / 114   168 / 128
  backward_tile      246 / 152    96 / 108   128 / 110
  backward_queries               164 / 208   236 / 210
  backward_keys                  160 / 172   162 / 137
Shared memory a program: 5 to 16 KB in bfloat16, 8 to 44 KB in float32. On sm_80 two of them spill:
backward_tile 8 bytes (8x8, bfloat16), backward_keys 16 (16x16, float32).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _corner(window, size, WINDOW: tl.constexpr):
    """Image, row and column of a window's first token in the rolled map; size is (H, W)."""
    columns = size[1] // WINDOW
    windows = size[0] // WINDOW * columns
    inside = window % windows
    return window // windows, inside // columns * WINDOW, inside % columns * WINDOW


@triton.jit
def _offset(image, y, x, size, strides, SHIFT: tl.constexpr):
    """Where a pixel of the rolled map lies; 64-bit, since a 4K image has more than 2^31 numbers."""
    if SHIFT > 0:
        y = tl.where(y + SHIFT >= size[0], y + SHIFT - size[0], y + SHIFT)
        x = tl.where(x + SHIFT >= size[1], x + SHIFT - size[1], x + SHIFT)
    offset = tl.cast(image, tl.int64) * strides[0]
    return offset + y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2]


@triton.jit
def _query_offsets(
    queries, channels, corner, size, strides, WINDOW: tl.constexpr, SHIFT: tl.constexpr
):
    image, top, left = corner
    pixel = _offset(image, top + queries // WINDOW, left + queries % WINDOW, size, strides, SHIFT)
    return pixel[:, None] + channels[None, :]


@triton.jit
def _key_offsets(
    keys, channels, total_channels, corner, size, strides,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, CELL: tl.constexpr,
):  # fmt: skip
    image, top, left = corner
    SIDE: tl.constexpr = WINDOW // CELL
    y, x = top + CELL * (keys // SIDE), left + CELL * (keys % SIDE)
    if CELL == 1:
        return _offset(image, y, x, size, strides, SHIFT)[:, None] + channels[None, :]
    depth = total_channels // (CELL * CELL)
    token = channels // depth
    y = y[:, None] + (token // CELL)[None, :]
    x = x[:, None] + (token % CELL)[None, :]
    return _offset(image, y, x, size, strides, SHIFT) + (channels % depth)[None, :]


@triton.jit
def _region(tokens, corner, size, SIDE: tl.constexpr, SHIFT: tl.constexpr, CELL: tl.constexpr):
    """Which of the nine regions of the rolled map a token (or a cell's first token) came from."""
    _, top, left = corner
    y, x = top + CELL * (tokens // SIDE), left + CELL * (tokens % SIDE)
    WINDOW: tl.constexpr = SIDE * CELL
    rows = (y >= size[0] - WINDOW).to(tl.int32) + (y >= size[0] - SHIFT).to(tl.int32)
    columns = (x >= size[1] - WINDOW).to(tl.int32) + (x >= size[1] - SHIFT).to(tl.int32)
    return 3 * rows + columns


@triton.jit
def _scores(
    q, k, table, queries, keys, corner, size,
    SCALE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, CELL: tl.constexpr,
):  # fmt: skip
    """log2(e) (scale q k^T + bias + mask); -inf for keys beyond the window. table: of the head."""
    SIDE: tl.constexpr = WINDOW // CELL
    SPAN: tl.constexpr = 2 * SIDE - 1
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (SCALE * LOG2E)
    query_part = (queries // WINDOW // CELL + SIDE - 1) * SPAN + queries % WINDOW // CELL + SIDE - 1
    key_part = keys // SIDE * SPAN + keys % SIDE
    inside = (queries < WINDOW * WINDOW)[:, None] & (keys < SIDE * SIDE)[None, :]
    bias = tl.load(table + (query_part[:, None] - key_part[None, :]), mask=inside, other=0.0)
    scores += bias * LOG2E
    if SHIFT > 0:
        query_region = _region(queries, corner, size, WINDOW, SHIFT, 1)
        key_region = _region(keys, corner, size, SIDE, SHIFT, CELL)
        apart = query_region[:, None] != key_region[None, :]
        scores = tl.where(apart, scores - 100.0 * LOG2E, scores)
    return tl.where((keys < SIDE * SIDE)[None, :], scores, float("-inf"))


@triton.jit
def _attend(
    q, k_ptr, v_ptr, table, queries, channels, seen, total_channels, corner, size, strides,
    SCALE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, CELL: tl.constexpr,
    BLOCK_K: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Queries meet all keys of their window: the output in SUM's dtype, and log2 of the sum."""
    KEYS: tl.constexpr = (WINDOW // CELL) * (WINDOW // CELL)
    highest = tl.full([q.shape[0]], float("-inf"), SUM)
    total = tl.zeros([q.shape[0]], SUM)
    out = tl.zeros([q.shape[0], q.shape[1]], SUM)
    for first in range(0, KEYS, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        at_k = _key_offsets(
            keys, channels, total_channels, corner, size, strides, WINDOW, SHIFT, CELL
        )
        here = (keys < KEYS)[:, None] & seen[None, :]
        k = tl.load(k_ptr + at_k, mask=here, other=0.0).to(DOT)
        v = tl.load(v_ptr + at_k, mask=here, other=0.0).to(DOT)
        scores = _scores(q, k, table, queries, keys, corner, size, SCALE, WINDOW, SHIFT, CELL)
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + tl.dot(p.to(DOT), v, input_precision="ieee")
        highest = higher
    return out / total[:, None], highest + tl.log2(total)


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, table_ptr, out_ptr, q_strides, kv_strides, out_strides, size, heads,
    HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    CELL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program (window, block of queries). Strides are (image, row, column); channels have 1."""
    SIDE: tl.constexpr = WINDOW // CELL
    corner = _corner(tl.program_id(0), size, WINDOW)
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    depth = tl.arange(0, BLOCK_D)
    seen = depth < HEAD_DIM
    here = (queries < WINDOW * WINDOW)[:, None] & seen[None, :]
    for head in range(heads):
        channels = head * HEAD_DIM + depth
        at_q = _query_offsets(queries, channels, corner, size, q_strides, WINDOW, SHIFT)
        q = tl.load(q_ptr + at_q, mask=here, other=0.0).to(DOT)
        table = table_ptr + head * ((2 * SIDE - 1) * (2 * SIDE - 1))
        out, _ = _attend(
            q, k_ptr, v_ptr, table, queries, channels, seen, heads * HEAD_DIM, corner, size,
            kv_strides, SCALE, WINDOW, SHIFT, CELL, BLOCK_K, DOT, SUM,
        )  # fmt: skip
        at_q = _query_offsets(queries, channels, corner, size, out_strides, WINDOW, SHIFT)
        tl.store(out_ptr + at_q, out.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def backward_tile(
    q_ptr, k_ptr, v_ptr, table_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr,
    partial_ptr, q_strides, kv_strides, grad_strides, dq_strides, dkv_strides, size, heads,
    windows, run,
    HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    CELL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr, WHOLE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Program (run of windows x head, tile of scores): the tile's dS, window after window.

    WHOLE: the tile is the whole window, and dq, dk, dv come of it; else lse and delta are read.
    BIAS: dS summed over the run goes to partial (runs, heads, N, keys).
    """
    SIDE: tl.constexpr = WINDOW // CELL
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = SIDE * SIDE
    TILES_K: tl.constexpr = (KEYS + BLOCK_K - 1) // BLOCK_K
    first, head = tl.program_id(0) // heads * run, tl.program_id(0) % heads
    queries = tl.program_id(1) // TILES_K * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = tl.program_id(1) % TILES_K * BLOCK_K + tl.arange(0, BLOCK_K)
    depth = tl.arange(0, BLOCK_D)
    channels = head * HEAD_DIM + depth
    here_q = (queries < QUERIES)[:, None] & (depth < HEAD_DIM)[None, :]
    here_k = (keys < KEYS)[:, None] & (depth < HEAD_DIM)[None, :]
    table = table_ptr + head * ((2 * SIDE - 1) * (2 * SIDE - 1))
    total = tl.zeros([BLOCK_Q, BLOCK_K], SUM)
    for window in range(first, tl.minimum(first + run, windows)):
        corner = _corner(window, size, WINDOW)
        at_q = _query_offsets(queries, channels, corner, size, q_strides, WINDOW, SHIFT)
        q = tl.load(q_ptr + at_q, mask=here_q, other=0.0).to(DOT)
        at_q = _query_offsets(queries, channels, corner, size, grad_strides, WINDOW, SHIFT)
        grad = tl.load(grad_ptr + at_q, mask=here_q, other=0.0).to(DOT)
        at_k = _key_offsets(
            keys, channels, heads * HEAD_DIM, corner, size, kv_strides, WINDOW, SHIFT, CELL
        )
        k = tl.load(k_ptr + at_k, mask=here_k, other=0.0).to(DOT)
        v = tl.load(v_ptr + at_k, mask=here_k, other=0.0).to(DOT)
        scores = _scores(q, k, table, queries, keys, corner, size, SCALE, WINDOW, SHIFT, CELL)
        dp = tl.dot(grad, tl.trans(v), input_precision="ieee")
        if WHOLE:
            p = tl.exp2(scores - tl.max(scores, 1)[:, None])
            p = p / tl.sum(p, 1)[:, None]
            ds = p * (dp - tl.sum(p * dp, 1)[:, None])
            dv = tl.dot(tl.trans(p.to(DOT)), grad, input_precision="ieee")
            dq = tl.dot(ds.to(DOT), k, input_precision="ieee") * SCALE
            dk = tl.dot(tl.trans(ds.to(DOT)), q, input_precision="ieee") * SCALE
            at_q = _query_offsets(queries, channels, corner, size, dq_strides, WINDOW, SHIFT)
            tl.store(dq_ptr + at_q, dq.to(dq_ptr.dtype.element_ty), mask=here_q)
            at_k = _key_offsets(
                keys, channels, heads * HEAD_DIM, corner, size, dkv_strides, WINDOW, SHIFT, CELL
            )
            tl.store(dk_ptr + at_k, dk.to(dk_ptr.dtype.element_ty), mask=here_k)
            tl.store(dv_ptr + at_k, dv.to(dv_ptr.dtype.element_ty), mask=here_k)
        else:
            rows = (tl.cast(window, tl.int64) * heads + head) * QUERIES + queries
            lse = tl.load(lse_ptr + rows, mask=queries < QUERIES, other=0.0)
            delta = tl.load(delta_ptr + rows, mask=queries < QUERIES, other=0.0)
            ds = tl.exp2(scores - lse[:, None]) * (dp - delta[:, None])
        if BIAS:
            total += ds
    if BIAS:
        rows = tl.cast(tl.program_id(0), tl.int64) * QUERIES + queries
        here = (queries < QUERIES)[:, None] & (keys < KEYS)[None, :]
        tl.store(partial_ptr + (rows[:, None] * KEYS + keys[None, :]), total, mask=here)


@triton.jit
def backward_queries(
    q_ptr, k_ptr, v_ptr, table_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr,
    q_strides, kv_strides, grad_strides, dq_strides, size, heads,
    HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    CELL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program (window, block of queries): dq; and each row's log2 of its sum, and sum of P dP."""
    SIDE: tl.constexpr = WINDOW // CELL
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = SIDE * SIDE
    corner = _corner(tl.program_id(0), size, WINDOW)
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    depth = tl.arange(0, BLOCK_D)
    seen = depth < HEAD_DIM
    here = (queries < QUERIES)[:, None] & seen[None, :]
    for head in range(heads):
        channels = head * HEAD_DIM + depth
        at_q = _query_offsets(queries, channels, corner, size, q_strides, WINDOW, SHIFT)
        q = tl.load(q_ptr + at_q, mask=here, other=0.0).to(DOT)
        at_q = _query_offsets(queries, channels, corner, size, grad_strides, WINDOW, SHIFT)
        grad = tl.load(grad_ptr + at_q, mask=here, other=0.0).to(DOT)
        table = table_ptr + head * ((2 * SIDE - 1) * (2 * SIDE - 1))
        out, lse = _attend(
            q, k_ptr, v_ptr, table, queries, channels, seen, heads * HEAD_DIM, corner, size,
            kv_strides, SCALE, WINDOW, SHIFT, CELL, BLOCK_K, DOT, SUM,
        )  # fmt: skip
        delta = tl.sum(out * grad.to(SUM), 1)
        rows = (tl.cast(tl.program_id(0), tl.int64) * heads + head) * QUERIES + queries
        tl.store(lse_ptr + rows, lse, mask=queries < QUERIES)
        tl.store(delta_ptr + rows, delta, mask=queries < QUERIES)
        dq = tl.zeros([BLOCK_Q, BLOCK_D], SUM)
        for first in range(0, KEYS, BLOCK_K):
            keys = first + tl.arange(0, BLOCK_K)
            at_k = _key_offsets(
                keys, channels, heads * HEAD_DIM, corner, size, kv_strides, WINDOW, SHIFT, CELL
            )
            here_k = (keys < KEYS)[:, None] & seen[None, :]
            k = tl.load(k_ptr + at_k, mask=here_k, other=0.0).to(DOT)
            v = tl.load(v_ptr + at_k, mask=here_k, other=0.0).to(DOT)
            scores = _scores(q, k, table, queries, keys, corner, size, SCALE, WINDOW, SHIFT, CELL)
            dp = tl.dot(grad, tl.trans(v), input_precision="ieee")
            ds = tl.exp2(scores - lse[:, None]) * (dp - delta[:, None])
            dq += tl.dot(ds.to(DOT), k, input_precision="ieee")
        at_q = _query_offsets(queries, channels, corner, size, dq_strides, WINDOW, SHIFT)
        tl.store(dq_ptr + at_q, (dq * SCALE).to(dq_ptr.dtype.element_ty), mask=here)


@triton.jit
def backward_keys(
    q_ptr, k_ptr, v_ptr, table_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_strides, kv_strides, grad_strides, dkv_strides, size, heads,
    HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    CELL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Program (window, block of keys): dk and dv, from the statistics of backward_queries."""
    SIDE: tl.constexpr = WINDOW // CELL
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = SIDE * SIDE
    corner = _corner(tl.program_id(0), size, WINDOW)
    keys = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    depth = tl.arange(0, BLOCK_D)
    seen = depth < HEAD_DIM
    here_k = (keys < KEYS)[:, None] & seen[None, :]
    for head in range(heads):
        channels = head * HEAD_DIM + depth
        at_k = _key_offsets(
            keys, channels, heads * HEAD_DIM, corner, size, kv_strides, WINDOW, SHIFT, CELL
        )
        k = tl.load(k_ptr + at_k, mask=here_k, other=0.0).to(DOT)
        v = tl.load(v_ptr + at_k, mask=here_k, other=0.0).to(DOT)
        table = table_ptr + head * ((2 * SIDE - 1) * (2 * SIDE - 1))
        dk = tl.zeros([BLOCK_K, BLOCK_D], SUM)
        dv = tl.zeros([BLOCK_K, BLOCK_D], SUM)
        for first in range(0, QUERIES, BLOCK_Q):
            queries = first + tl.arange(0, BLOCK_Q)
            here = (queries < QUERIES)[:, None] & seen[None, :]
            at_q = _query_offsets(queries, channels, corner, size, q_strides, WINDOW, SHIFT)
            q = tl.load(q_ptr + at_q, mask=here, other=0.0).to(DOT)
            at_q = _query_offsets(queries, channels, corner, size, grad_strides, WINDOW, SHIFT)
            grad = tl.load(grad_ptr + at_q, mask=here, other=0.0).to(DOT)
            rows = (tl.cast(tl.program_id(0), tl.int64) * heads + head) * QUERIES + queries
            lse = tl.load(lse_ptr + rows, mask=queries < QUERIES, other=0.0)
            delta = tl.load(delta_ptr + rows, mask=queries < QUERIES, other=0.0)
            scores = _scores(q, k, table, queries, keys, corner, size, SCALE, WINDOW, SHIFT, CELL)
            p = tl.exp2(scores - lse[:, None])
            dv += tl.dot(tl.trans(p.to(DOT)), grad, input_precision="ieee")
            dp = tl.dot(grad, tl.trans(v), input_precision="ieee")
            ds = p * (dp - delta[:, None])
            dk += tl.dot(tl.trans(ds.to(DOT)), q, input_precision="ieee")
        at_k = _key_offsets(
            keys, channels, heads * HEAD_DIM, corner, size, dkv_strides, WINDOW, SHIFT, CELL
        )
        tl.store(dk_ptr + at_k, (dk * SCALE).to(dk_ptr.dtype.element_ty), mask=here_k)
        tl.store(dv_ptr + at_k, dv.to(dv_ptr.dtype.element_ty), mask=here_k)
