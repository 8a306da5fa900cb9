"""HiT-SR's layers in plain PyTorch, by their paper (2407.05878), with the published names."""

import torch
from published_layers import ConvFFN, Mlp, WindowAttention, map_of, windows_of
from torch import nn
from torch.nn import functional as F


class DFE(nn.Module):
    """Dual feature extraction."""

    def __init__(self, dim):
        super().__init__()
        hidden = dim // 5
        self.conv = nn.Sequential(
            nn.Conv2d(dim, hidden, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, dim, 1),
        )
        self.linear = nn.Conv2d(dim, dim, 1)

    def forward(self, x, x_size):
        image = x.mT.unflatten(2, x_size)
        return (self.conv(image) * self.linear(image)).flatten(2).mT


class DynamicPosBias(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.pos_proj = nn.Linear(2, dim)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out))
            for out in (dim, dim, heads)
        )

    def forward(self, biases):
        return self.pos3(self.pos2(self.pos1(self.pos_proj(biases))))


class NGramContext(nn.Module):
    """A context for each window from its neighbours (2211.11436), (B, rows, columns, 1, 1, C)."""

    def __init__(self, dim, window, heads):
        super().__init__()
        self.unigram_embed = nn.Conv2d(2, 1, window, stride=window)
        self.ngram_attn = WindowAttention(dim // 2, 2, heads)
        self.merge = nn.Conv2d(dim, dim, 1)

    def bigrams(self, tokens, back):
        """Attention among each token, the next and those below, or those before and above."""
        rows, columns = tokens.shape[1:3]

        def place(index, length):
            return -index if index < 0 else 2 * length - 2 - index if index >= length else index

        means = []
        for y in range(rows):
            for x in range(columns):
                places = [(y - back + i, x - back + j) for i in (0, 1) for j in (0, 1)]
                four = [tokens[:, place(i, rows), place(j, columns)] for i, j in places]
                means.append(self.ngram_attn(torch.stack(four, 1)).mean(1))
        return torch.stack(means, 1).unflatten(1, (rows, columns))

    def forward(self, x):
        pairs = x.permute(0, 3, 1, 2).unflatten(1, (-1, 2)).flatten(0, 1)
        tokens = self.unigram_embed(pairs)[:, 0].unflatten(0, (len(x), -1)).permute(0, 2, 3, 1)
        both = torch.cat([self.bigrams(tokens, back) for back in (0, 1)], -1)
        return self.merge(both.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, :, :, None, None]


class NGramWindowPartition(nn.Module):
    def __init__(self, dim, window, heads):
        super().__init__()
        self.window_size, self.shift_size = window, 0
        self.ngram_context = NGramContext(dim, window, heads)

    def forward(self, x):
        context = self.ngram_context(x)[:, :, :, 0, 0]
        for axis in (1, 2):
            context = context.repeat_interleave(self.window_size, axis)
        return windows_of(x + context, self.window_size)


class SCC(nn.Module):
    """Spatial and channel correlation."""

    def __init__(self, dim, base, window, heads, context):
        super().__init__()
        self.window_size, self.num_heads = (window, window), heads
        self.base_win_size = (min(base, window),) * 2
        self.scale = dim // (2 * heads)
        self.qv, self.proj = DFE(dim), nn.Linear(dim, dim)
        self.value_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.spatial_linear = nn.Linear((window // self.base_win_size[0]) ** 2, 1)
        self.pos = DynamicPosBias(dim // 16, heads)
        if context:
            self.ngram_window_partition = NGramWindowPartition(dim, window, heads)

    def bias(self):
        """The bias of each token to each cell, the mean of those to its tokens: (heads, N, M)."""
        window, cells = self.window_size[0], self.base_win_size[0]
        places = torch.arange(window).to(self.proj.weight)
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1).flatten(0, 1)
        bias = self.pos((grid[:, None] - grid[None]).flatten(0, 1))
        bias = bias.view(window**2, cells, window // cells, cells, window // cells, -1)
        return bias.mean((2, 4)).flatten(1, 2).permute(2, 0, 1)

    def forward(self, x):
        _, height, width, _ = x.shape
        (window, _), (cells, _) = self.window_size, self.base_win_size
        qv = self.qv(x.flatten(1, 2), (height, width)).unflatten(1, (height, width))
        context = getattr(self, "ngram_window_partition", None)
        qv = windows_of(qv, window) if context is None else context(qv)
        q, v = qv.chunk(2, -1)
        heads = [each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, v)]
        pooled = heads[1].unflatten(2, (cells, window // cells, cells, window // cells))
        pooled = pooled.permute(0, 1, 2, 4, 6, 3, 5).flatten(5)
        pooled = self.spatial_linear(pooled).squeeze(-1).flatten(2, 3)
        spatial = (heads[0] @ pooled.mT / self.scale + self.bias()) @ pooled
        spatial = spatial.transpose(1, 2).flatten(2)
        channel = v @ (q.mT @ v / window**2).mT
        mixed = torch.cat([spatial, channel], -1)
        return self.proj_drop(self.proj(map_of(mixed, height, width, window)))


class HierarchicalTransformerBlock(nn.Module):
    def __init__(self, dim=48, window=8, base=4, heads=2, *, context=False, convolutional=False):
        super().__init__()
        self.window_size = (window, window)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.correlation = SCC(dim, base, window, heads, context)
        self.drop_path = nn.Identity()
        self.mlp = ConvFFN(dim, 2 * dim) if convolutional else Mlp(dim, 2 * dim, 0.0)
        self.context, self.convolutional = context, convolutional

    def check_image_size(self, x, win_size):
        below, right = -x.shape[1] % win_size[0], -x.shape[2] % win_size[1]
        padded = x.permute(0, 3, 1, 2)
        while below or right:  # no side can be mirrored beyond its own length at once
            now = min(below, padded.shape[2] - 1), min(right, padded.shape[3] - 1)
            padded = F.pad(padded, (0, now[1], 0, now[0]), "reflect")
            below, right = below - now[0], right - now[1]
        return padded.permute(0, 2, 3, 1).contiguous()

    def forward(self, x, x_size, win_size):
        unit = tuple(side * (2 if self.context else 1) for side in win_size)
        padded = self.check_image_size(x.unflatten(1, x_size), unit)
        mixed = self.correlation(padded)[:, : x_size[0], : x_size[1]].flatten(1, 2)
        x = x + self.drop_path(self.norm1(mixed))
        fed = self.mlp(x, x_size) if self.convolutional else self.mlp(x)
        return x + self.drop_path(self.norm2(fed))
