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


class DepthwiseConv(nn.Module):
    """The branch of a ConvFFN that looks around."""

    def __init__(self, hidden):
        super().__init__()
        convolution = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.depthwise_conv = nn.Sequential(convolution, nn.GELU())

    def forward(self, x, x_size):
        return self.depthwise_conv(x.mT.unflatten(2, x_size)).flatten(2).mT


class ConvFFN(nn.Module):
    """SRFormer's feed-forward (2303.09735, section 3.3)."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        self.dwconv, self.drop = DepthwiseConv(hidden), nn.Dropout(0.0)

    def forward(self, x, x_size):
        x = self.act(self.fc1(x))
        return self.drop(self.fc2(x + self.dwconv(x, x_size)))


def cells_of(windows, side):
    """Every 2x2 tokens of windows (B, side^2, C) side by side: (B, (side / 2)^2, 4 C)."""
    half = side // 2
    x = windows.unflatten(1, (half, 2, half, 2)).transpose(2, 3)
    return x.reshape(len(windows), half * half, -1)


class PSA(nn.Module):
    """Permuted attention: keys and values are a quarter as wide, 2x2 tokens stacked into one."""

    def __init__(self, dim, window, heads):
        super().__init__()
        self.window_size, self.num_heads = (window, window), heads
        self.scale = (dim // heads) ** -0.5
        keys = window // 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * keys - 1) ** 2, heads))
        index = offsets_index(keys).view(keys, keys, -1)
        index = index.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten(0, 1)
        self.register_buffer("aligned_relative_position_index", index)
        self.kv, self.q = nn.Linear(dim, dim // 2), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        k, v = (cells_of(each, self.window_size[0]) for each in self.kv(x).chunk(2, -1))
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)) for each in (self.q(x), k, v))
        scores = torch.einsum("bnhd,bmhd->bhnm", q * self.scale, k)
        bias = self.relative_position_bias_table[self.aligned_relative_position_index]
        scores = scores + bias.permute(2, 0, 1)
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))


class PSA_Block(nn.Module):
    """SRFormer's layer (2303.09735)."""

    def __init__(self, dim=24, window=8, heads=3, shift=0):
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.drop_path = PSA(dim, window, heads), nn.Identity()
        self.mlp = ConvFFN(dim, 2 * dim)

    def forward(self, x, x_size):
        window, shift = self.window_size, self.shift_size
        mask = None
        if shift:  # a cell's four tokens are of one region
            mask = shift_mask(*x_size, window, shift).to(x).unflatten(2, (window, window))
            mask = mask[:, :, ::2, ::2].flatten(2)
        mixed = self.norm1(x).unflatten(1, x_size).roll((-shift, -shift), (1, 2))
        mixed = map_of(self.attn(windows_of(mixed, window), mask), *x_size, window)
        x = x + mixed.roll((shift, shift), (1, 2)).flatten(1, 2)
        return x + self.mlp(self.norm2(x), x_size)


class IndexedAttention(WindowAttention):
    """HAT's: the index comes with the call."""

    def __init__(self, dim, window, heads):
        super().__init__(dim, window, heads)
        del self.relative_position_index

    def forward(self, x, rpi, mask=None):
        self.relative_position_index = rpi
        try:
            return super().forward(x, mask)
        finally:
            del self.relative_position_index


class ChannelAttention(nn.Module):
    def __init__(self, dim, squeeze):
        super().__init__()
        narrow = dim // squeeze
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, dim, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.attention(x)


class CAB(nn.Module):
    """HAT's convolutions beside its attention."""

    def __init__(self, dim, compress, squeeze):
        super().__init__()
        narrow = dim // compress
        self.cab = nn.Sequential(
            nn.Conv2d(dim, narrow, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(narrow, dim, 3, padding=1),
            ChannelAttention(dim, squeeze),
        )

    def forward(self, x):
        return self.cab(x)


class HAB(nn.Module):
    """HAT's layer (2205.04437): attention beside channel attention, then an MLP."""

    def __init__(self, dim=24, window=4, heads=3, shift=0):
        super().__init__()
        self.window_size, self.shift_size, self.conv_scale = window, shift, 0.01
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.drop_path = IndexedAttention(dim, window, heads), nn.Identity()
        self.conv_block = CAB(dim, 3, 6)
        self.mlp = Mlp(dim, 2 * dim, 0.0)

    def forward(self, x, x_size, rpi_sa, attn_mask):
        window, shift = self.window_size, self.shift_size
        image = self.norm1(x).unflatten(1, x_size)
        local = self.conv_block(image.permute(0, 3, 1, 2)).flatten(2).mT
        windows = windows_of(image.roll((-shift, -shift), (1, 2)), window)
        mixed = self.attn(windows, rpi_sa, attn_mask if shift else None)
        mixed = map_of(mixed, *x_size, window).roll((shift, shift), (1, 2)).flatten(1, 2)
        x = x + self.drop_path(mixed) + local * self.conv_scale
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
