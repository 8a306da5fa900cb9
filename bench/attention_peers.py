"""Window attention by torch's own attention functions, around them roll, partition and merge."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from bench.materialised import relative_index
from bench.workloads import Function

GPU_HEAD_DIM = 16  # the least that FlexAttention takes; SDPA's fast kernels want a multiple of 8


def sdpa(
    tensors: dict[str, Tensor],
    backward: bool,
    window_size: int,
    num_heads: int,
    shift: int,
    head_dim: int = 0,
) -> Function:
    """F.scaled_dot_product_attention with a dense bias + mask, heads padded to `head_dim`.

    The mask is made here, before the clock starts, and the bias too unless it has a gradient.
    """
    qkv = tensors["qkv"]
    index = relative_index(window_size).to(qkv.device)
    mask = None
    if shift:
        region = regions(qkv, window_size, shift)
        apart = region[:, None, :, None] != region[:, None, None, :]
        mask = torch.where(apart, -100.0, 0.0).to(qkv.dtype)

    def dense(bias_table: Tensor) -> Tensor:
        bias = rearrange(bias_table[index], "query key head -> 1 head query key").to(qkv.dtype)
        return bias if mask is None else bias + mask

    ready = None if backward else dense(tensors["bias_table"])

    def attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor) -> Tensor:
        bias = dense(bias_table) if ready is None else ready
        out = F.scaled_dot_product_attention(
            *(padded(x, head_dim) for x in (q, k, v)), attn_mask=bias, scale=q.shape[-1] ** -0.5
        )
        return out[..., : q.shape[-1]]

    return in_windows(attend, window_size, num_heads, shift)


def sdpa_of_cosines(
    tensors: dict[str, Tensor], backward: bool, window_size: int, num_heads: int, shift: int
) -> Function:
    """The same of q and k that F.normalize has made as long as the scale and 1."""
    attention = sdpa(tensors, backward, window_size, num_heads, shift)

    def of_cosines(tensors: dict[str, Tensor]) -> Tensor:
        q, k, v = tensors["qkv"].unflatten(-1, (3, num_heads, -1)).unbind(3)
        scale = tensors["cosine_scale"].to(q.dtype)[:, None] * q.shape[-1] ** 0.5
        parts = [F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v]
        return attention({**tensors, "qkv": torch.stack(parts, 3).flatten(3)})

    return of_cosines


def padded(x: Tensor, head_dim: int) -> Tensor:
    """Heads of `head_dim` channels, zeros behind; as they are where they have as many."""
    return F.pad(x, (0, max(0, head_dim - x.shape[-1])))


def flex_attention(
    tensors: dict[str, Tensor], window_size: int, num_heads: int, shift: int
) -> Function:
    """FlexAttention, which looks bias and region up as it goes; compiled for the shape.

    On a GPU it takes no head of fewer than 16 channels: such are padded.
    """
    head_dim = GPU_HEAD_DIM if tensors["qkv"].is_cuda else 0
    index = relative_index(window_size).to(tensors["qkv"].device)
    region = regions(tensors["qkv"], window_size, shift) if shift else None
    torch._dynamo.reset()
    compiled = torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor) -> Tensor:
        def score(value, window, head, query, key):
            value = value + bias_table[index[query, key], head]
            if region is None:
                return value
            return torch.where(region[window, query] == region[window, key], value, value - 100.0)

        wide = (padded(x, head_dim).contiguous() for x in (q, k, v))
        out = compiled(*wide, score_mod=score, scale=q.shape[-1] ** -0.5)
        return out[..., : q.shape[-1]]

    return in_windows(attend, window_size, num_heads, shift)


def in_windows(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
) -> Function:
    """From qkv (1, H, W, 3C) to `attend`'s q, k, v (windows, heads, tokens, head_dim), and back."""

    def attention(tensors: dict[str, Tensor]) -> Tensor:
        qkv = tensors["qkv"]
        rows = qkv.shape[1] // window_size
        if shift:
            qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
        q, k, v = rearrange(
            qkv,
            "1 (wy y) (wx x) (three head d) -> three (wy wx) head (y x) d",
            three=3,
            head=num_heads,
            y=window_size,
            x=window_size,
        )
        out = attend(q, k, v, tensors["bias_table"])
        out = rearrange(
            out,
            "(wy wx) head (y x) d -> 1 (wy y) (wx x) (head d)",
            wy=rows,
            y=window_size,
        )
        return torch.roll(out, (shift, shift), (1, 2)) if shift else out

    return attention


def regions(qkv: Tensor, window: int, shift: int) -> Tensor:
    """(windows, w*w): tokens of a rolled window attend within their region only."""
    region = torch.zeros(qkv.shape[1:3], dtype=torch.int32, device=qkv.device)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
        region[rows, columns] = number
    return rearrange(region, "(wy y) (wx x) -> (wy wx) (y x)", y=window, x=window).contiguous()


def sdpa_of_rectangles(
    tensors: dict[str, Tensor],
    backward: bool,
    window_size: tuple[int, int],
    num_heads: int,
    overlap: tuple[int, int],
    shift: tuple[int, int],
) -> Function:
    """F.scaled_dot_product_attention of rectangular windows to larger ones, which `unfold` cuts.

    Bias and mask are added up here, before the clock starts, unless the bias has a gradient.
    """
    height, width = tensors["q"].shape[1:3]
    rows, columns = height // window_size[0], width // window_size[1]
    mask = None
    if any(shift):
        bands = [
            (torch.arange(n) >= n - side).int() + (torch.arange(n) >= n - moved).int()
            for n, side, moved in zip((height, width), window_size, shift, strict=True)
        ]
        region = rearrange(
            bands[0][:, None] * 3 + bands[1], "(wy y) (wx x) -> (wy wx) (y x)", wy=rows, wx=columns
        )
        apart = region[:, None, :, None] != region[:, None, None, :]
        mask = torch.where(apart, -100.0, 0.0).to(tensors["q"])

    def dense(bias: Tensor) -> Tensor:
        return bias.to(tensors["q"].dtype)[None] if mask is None else bias.to(mask) + mask

    def around(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, overlap[1], overlap[1], overlap[0], overlap[0]))
        for dim, side, more in zip((1, 2), window_size, overlap, strict=True):
            x = x.unfold(dim, side + 2 * more, side)
        return rearrange(x, "1 wy wx (head d) y x -> (wy wx) head (y x) d", head=num_heads)

    ready = None if backward else dense(tensors["bias"])

    def attention(tensors: dict[str, Tensor]) -> Tensor:
        q, k, v = (tensors[name] for name in "qkv")
        if any(shift):
            q, k, v = (torch.roll(x, (-shift[0], -shift[1]), (1, 2)) for x in (q, k, v))
        query = rearrange(
            q, "1 (wy y) (wx x) (head d) -> (wy wx) head (y x) d", wy=rows, wx=columns,
            head=num_heads,
        )  # fmt: skip
        key, value = (around(x) for x in (k, v))
        bias = dense(tensors["bias"]) if ready is None else ready
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = rearrange(
            out, "(wy wx) head (y x) d -> 1 (wy y) (wx x) (head d)", wy=rows, y=window_size[0]
        )
        return torch.roll(out, shift, (1, 2)) if any(shift) else out

    return attention
