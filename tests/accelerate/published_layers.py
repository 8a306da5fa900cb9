"""Layers of published networks in plain PyTorch, by their papers, with the published names.

They look into nothing of this package: what `accelerate` makes of them is compared with them.
"""

import torch
from torch import nn


def offsets_index(window):
    """Row of the bias table for each pair of a window's tokens, one pair at a time."""
    places = [(y, x) for y in range(window) for x in range(window)]
    rows = [
        [(y - v + window - 1) * (2 * window - 1) + x - u + window - 1 for v, u in places]
        for y, x in places
    ]
    return torch.tensor(rows)


def shift_mask(height, width, window, shift):
    """-100 for tokens of a window of the rolled map that were not neighbours before."""

    def region(place, length):
        return 0 if place < length - window else 1 if place < length - shift else 2

    labels = torch.tensor(
        [[3 * region(y, height) + region(x, width) for x in range(width)] for y in range(height)]
    )
    labels = windows_of(labels[None, :, :, None].float(), window).squeeze(-1)
    return torch.where(labels[:, :, None] == labels[:, None, :], 0.0, -100.0)


def windows_of(x, window):
    """(B, H, W, C) -> (B * windows, window^2, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def map_of(windows, height, width, window):
    """The inverse of `windows_of`."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


class DropPath(nn.Module):
    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1)) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


class Mlp(nn.Module):
    def __init__(self, dim, hidden, drop):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class WindowAttention(nn.Module):
    def __init__(self, dim, window, heads, attn_drop=0.0):
        super().__init__()
        self.window_size, self.num_heads = (window, window), heads
        self.scale = (dim // heads) ** -0.5
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.register_buffer("relative_position_index", offsets_index(window))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(0.0)

    def forward(self, x, mask=None):
        count, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.num_heads, -1).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q * self.scale, k)
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = scores + bias.permute(2, 0, 1)
        if mask is not None:
            scores = scores.unflatten(0, (-1, len(mask))) + mask[:, None]
            scores = scores.flatten(0, 1)
        shares = self.attn_drop(scores.softmax(-1))
        mixed = torch.einsum("bhnm,bmhd->bnhd", shares, v).reshape(count, tokens, channels)
        return self.proj_drop(self.proj(mixed))


class SwinTransformerBlock(nn.Module):
    """SwinIR's layer (2108.10257)."""

    def __init__(self, dim=24, window=4, heads=3, shift=0, *, size=(8, 8), attn_drop=0.0, path=0.0):
        super().__init__()
        self.input_resolution, self.window_size, self.shift_size = size, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads, attn_drop)
        self.drop_path = DropPath(path) if path else nn.Identity()
        self.mlp = Mlp(dim, 2 * dim, 0.0)
        self.register_buffer("attn_mask", shift_mask(*size, window, shift) if shift else None)

    def mixed(self, x, x_size):
        """Attention of the map, rolled there and back."""
        height, width = x_size
        x = x.view(len(x), height, width, -1).roll((-self.shift_size,) * 2, (1, 2))
        mask = self.attn_mask
        if mask is not None and tuple(x_size) != tuple(self.input_resolution):
            mask = shift_mask(height, width, self.window_size, self.shift_size)
        windows = self.attn(windows_of(x, self.window_size), mask)
        x = map_of(windows, height, width, self.window_size)
        return x.roll((self.shift_size,) * 2, (1, 2)).flatten(1, 2)

    def forward(self, x, x_size):
        x = x + self.drop_path(self.mixed(self.norm1(x), x_size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Body(nn.Module):
    """Layers of any kind in turn, the way that a network holds them."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, x_size):
        for layer in self.layers:
            x = layer(x, x_size)
        return x


def randomised(module):
    """Each parameter random: fresh ones, with bias tables of zero, would hide a wrong index."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    return module
