"""Swin2SR's layers in plain PyTorch, by Swin V2 (2111.09883), in both packages' structure."""

import math

import torch
from published_layers import Mlp, map_of, offsets_index, shift_mask, windows_of
from torch import nn
from torch.nn import functional as F


def coordinates(window):
    """The offsets, in units of 8 and logarithmic: (1, 2w-1, 2w-1, 2)."""
    places = torch.arange(1 - window, window) * 8 / (window - 1)
    places = places.sign() * (places.abs() + 1).log2() / 3
    return torch.stack(torch.meshgrid(places, places, indexing="ij"), -1)[None]


def position_mlp(heads):
    return nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))


def cosine_attention(module, q, k, v, table, mask):
    """Attention of heads-last q, k, v (windows, N, heads, C): scale cos(q, k) + 16 sigmoid(b)."""
    q, k = (F.normalize(each, dim=-1) for each in (q, k))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    scores = scores * module.logit_scale.clamp(max=math.log(100)).exp()
    bias = table.flatten(0, -2)[module.relative_position_index].permute(2, 0, 1)
    scores = scores + 16 * bias.sigmoid()
    if mask is not None:
        scores = scores.unflatten(0, (-1, len(mask))) + mask[:, None]
        scores = scores.flatten(0, 1)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)


class WindowAttention(nn.Module):
    def __init__(self, dim, window, heads):
        super().__init__()
        self.window_size, self.num_heads = (window, window), heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = position_mlp(heads)
        self.register_buffer("relative_coords_table", coordinates(window))
        self.register_buffer("relative_position_index", offsets_index(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        parts = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return self.proj(
            cosine_attention(self, *parts, self.cpb_mlp(self.relative_coords_table), mask)
        )


def in_shifted_windows(x, size, window, shift, attend):
    """x (B, H W, C) through `attend(windows, mask)` on the rolled map."""
    x = x.unflatten(1, size).roll((-shift, -shift), (1, 2))
    mask = shift_mask(*size, window, shift).to(x) if shift else None
    x = map_of(attend(windows_of(x, window), mask), *size, window)
    return x.roll((shift, shift), (1, 2)).flatten(1, 2)


class SwinTransformerBlock(nn.Module):
    """The layer of the authors' Swin2SR: norms last."""

    def __init__(self, dim=24, window=4, heads=3, shift=0):
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.drop_path = nn.Identity()
        self.mlp = Mlp(dim, 2 * dim, 0.0)

    def forward(self, x, x_size):
        mixed = in_shifted_windows(x, x_size, self.window_size, self.shift_size, self.attn)
        x = x + self.norm1(mixed)
        return x + self.norm2(self.mlp(x))


def tree(**children):
    """A module of these children, which does nothing of its own."""
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


class SelfAttention(nn.Module):
    def __init__(self, dim, window, heads):
        super().__init__()
        self.num_attention_heads = heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.continuous_position_bias_mlp = position_mlp(heads)
        self.relative_coords_table = nn.Buffer(coordinates(window), persistent=False)
        self.relative_position_index = nn.Buffer(offsets_index(window), persistent=False)
        self.query, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x, mask):
        heads = self.num_attention_heads
        parts = [part(x).unflatten(-1, (heads, -1)) for part in (self.query, self.key, self.value)]
        table = self.continuous_position_bias_mlp(self.relative_coords_table)
        return cosine_attention(self, *parts, table, mask)


class OwnGelu(nn.Module):
    """A package's own class for the exact GELU."""

    def forward(self, x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


class Swin2SRLayer(nn.Module):
    """The layer of Hugging Face's transformers."""

    def __init__(self, dim=24, window=4, heads=3, shift=0):
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.attention = tree(output=tree(dense=nn.Linear(dim, dim), dropout=nn.Dropout(0.0)))
        self.attention.self = SelfAttention(dim, window, heads)
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop_path = nn.Identity()
        activation = OwnGelu()
        self.intermediate = tree(dense=nn.Linear(dim, 2 * dim), intermediate_act_fn=activation)
        self.output = tree(dense=nn.Linear(2 * dim, dim), dropout=nn.Dropout(0.0))

    def forward(self, hidden_states, input_dimensions, output_attentions=False):
        def attend(windows, mask):  # the mask is added twice there, which changes nothing
            doubled = None if mask is None else 2 * mask
            return self.attention.output.dense(self.attention.self(windows, doubled))

        x, window = hidden_states, self.window_size
        mixed = in_shifted_windows(x, input_dimensions, window, self.shift_size, attend)
        x = x + self.layernorm_before(mixed)
        fed = self.intermediate.intermediate_act_fn(self.intermediate.dense(x))
        x = x + self.layernorm_after(self.output.dense(fed))
        return (x, mixed) if output_attentions else (x,)
