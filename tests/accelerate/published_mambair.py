"""MambaIR's layers in plain PyTorch, by their paper (2402.15648), with the published names."""

import math

import torch
from published_layers import CAB, ChannelAttention
from torch import nn
from torch.nn import functional as F


class SS2D(nn.Module):
    """Four scans, one state after the other, in float32 at least."""

    def __init__(self, dim, states, ratio):
        super().__init__()
        hidden = int(dim * ratio)
        self.rank, self.states = math.ceil(dim / 16), states
        self.in_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.conv2d = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.x_proj_weight = nn.Parameter(torch.zeros(4, self.rank + 2 * states, hidden))
        self.dt_projs_weight = nn.Parameter(torch.zeros(4, hidden, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.zeros(4, hidden))
        self.A_logs = nn.Parameter(torch.zeros(4 * hidden, states))
        self.Ds = nn.Parameter(torch.ones(4 * hidden))
        self.out_norm = nn.LayerNorm(hidden)
        self.out_proj = nn.Linear(hidden, dim, bias=False)

    def scanned(self, tokens, k):
        """One direction's scan of (B, L, hidden)."""
        hidden = tokens.shape[-1]
        mine = slice(k * hidden, (k + 1) * hidden)
        sizes = [self.rank, self.states, self.states]
        steps, entry, reading = (tokens @ self.x_proj_weight[k].T).split(sizes, -1)
        delta = F.softplus(steps @ self.dt_projs_weight[k].T + self.dt_projs_bias[k])
        decay = self.A_logs[mine].exp()
        state, out = tokens.new_zeros(len(tokens), hidden, self.states), []
        for t in range(tokens.shape[1]):
            step = delta[:, t, :, None]
            state = state * (-step * decay).exp()
            state = state + step * entry[:, t, None] * tokens[:, t, :, None]
            y = (state * reading[:, t, None]).sum(-1)
            out.append(y + self.Ds[mine] * tokens[:, t])
        return torch.stack(out, 1)

    def forward(self, x):
        height, width = x.shape[1:3]
        x, gate = self.in_proj(x).chunk(2, -1)
        image = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        total = 0
        for k in range(4):
            transposed = image.mT if k % 2 else image
            tokens = transposed.flatten(2).mT
            y = self.scanned(tokens.flip(1), k).flip(1) if k > 1 else self.scanned(tokens, k)
            y = y.mT.unflatten(2, (width, height) if k % 2 else (height, width))
            total = total + (y.mT if k % 2 else y)
        return self.out_proj(self.out_norm(total.permute(0, 2, 3, 1)) * F.silu(gate))


class LightCAB(nn.Module):
    """The lightweight network's convolutions, the last one dilated."""

    def __init__(self, dim, squeeze):
        super().__init__()
        narrow = dim // 2
        self.cab = nn.Sequential(
            nn.Conv2d(dim, narrow, 1),
            nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow),
            nn.GELU(),
            nn.Conv2d(narrow, dim, 1),
            nn.Conv2d(dim, dim, 3, padding=2, groups=dim, dilation=2),
            ChannelAttention(dim, squeeze),
        )

    def forward(self, x):
        return self.cab(x)


class VSSBlock(nn.Module):
    def __init__(self, dim=24, *, states=4, ratio=1.2, light=True):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = SS2D(dim, states, ratio)
        self.conv_blk = LightCAB(dim, 6) if light else CAB(dim, 3, 6)
        self.skip_scale, self.skip_scale2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))

    def forward(self, x, x_size):
        image = x.unflatten(1, x_size)
        image = image * self.skip_scale + self.self_attention(self.ln_1(image))
        local = self.conv_blk(self.ln_2(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (image * self.skip_scale2 + local).flatten(1, 2)
