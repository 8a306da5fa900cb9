"""HAT's overlapping attention and DAT's rectangular windows, by their papers, in plain PyTorch.

They look into nothing of this package: what `accelerate` makes of them is compared with them.
"""

import published_layers as layers
import torch
from torch import nn
from torch.nn import functional as F


def heads_of(x, heads):
    """(windows, N, C) -> (windows, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class OCAB(nn.Module):
    def __init__(self, dim=24, window=4, ratio=0.5, heads=3):
        super().__init__()
        larger = window + int(window * ratio)
        self.window_size, self.overlap_win_size, self.num_heads = window, larger, heads
        self.scale = (dim // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.unfold = nn.Unfold(
            kernel_size=(larger, larger), stride=window, padding=(larger - window) // 2
        )
        table = torch.zeros((window + larger - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.softmax = nn.Softmax(dim=-1)
        self.mlp = layers.Mlp(dim, 2 * dim, 0.0)

    def forward(self, x, x_size, rpi):
        batch, _, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).unflatten(1, x_size).chunk(3, -1)
        q = layers.windows_of(q, self.window_size)
        keys = self.unfold(torch.cat([k, v], -1).permute(0, 3, 1, 2))
        keys = keys.unflatten(1, (2, dim, -1)).permute(1, 0, 4, 3, 2)  # (k or v, B, windows, M, C)
        k, v = keys.flatten(1, 2)
        q, k, v = (heads_of(each, self.num_heads) for each in (q, k, v))
        bias = self.relative_position_bias_table[rpi.view(-1)]
        bias = bias.view(self.window_size**2, self.overlap_win_size**2, -1).permute(2, 0, 1)
        scores = self.softmax(self.scale * q @ k.transpose(-1, -2) + bias)
        out = (scores @ v).transpose(1, 2).flatten(2)
        out = layers.map_of(out, *x_size, self.window_size).reshape(batch, -1, dim)
        x = x + self.proj(out)
        return x + self.mlp(self.norm2(x))


def overlapping_index(window, larger):
    """Row of HAT's table for each query and key, one pair at a time; negative rows are the last."""
    side, rows = window + larger - 1, []
    for y in range(window):
        for x in range(window):
            shifts = [
                (v - y + window - larger + 1) * side + u - x + window - larger + 1
                for v in range(larger)
                for u in range(larger)
            ]
            rows.append(shifts)
    return torch.tensor(rows)


class DynamicPosBias(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.pos_proj = nn.Linear(2, dim)
        for name, outputs in (("pos1", dim), ("pos2", dim), ("pos3", heads)):
            setattr(
                self, name, nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, outputs))
            )

    def forward(self, biases):
        return self.pos3(self.pos2(self.pos1(self.pos_proj(biases))))


class Spatial_Attention(nn.Module):
    def __init__(self, dim, sides, heads):
        super().__init__()
        self.H_sp, self.W_sp = sides
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.pos = DynamicPosBias(dim // 4, heads)
        offsets = [
            (y, x) for y in range(1 - sides[0], sides[0]) for x in range(1 - sides[1], sides[1])
        ]
        self.register_buffer("rpe_biases", torch.tensor(offsets).float())
        places = [(y, x) for y in range(sides[0]) for x in range(sides[1])]
        index = [[offsets.index((y - v, x - u)) for v, u in places] for y, x in places]
        self.register_buffer("relative_position_index", torch.tensor(index))
        self.attn_drop = nn.Dropout(0.0)

    def forward(self, qkv, labels):
        """qkv (3, B, H, W, C) and, of each pixel, whom it may meet; (B, H, W, C)."""
        height, width = qkv.shape[2:4]
        rows, columns = height // self.H_sp, width // self.W_sp
        bias = self.pos(self.rpe_biases)[self.relative_position_index].permute(2, 0, 1)
        out = torch.empty_like(qkv[0])
        for row in range(rows):
            for column in range(columns):
                y = slice(row * self.H_sp, (row + 1) * self.H_sp)
                x = slice(column * self.W_sp, (column + 1) * self.W_sp)
                q, k, v = (heads_of(each[:, y, x].flatten(1, 2), self.num_heads) for each in qkv)
                label = labels[y, x].flatten()
                mask = torch.where(label[:, None] == label, 0.0, -100.0).to(q.dtype)
                scores = self.scale * q @ k.transpose(-1, -2) + bias + mask
                found = (self.attn_drop(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)
                out[:, y, x] = found.unflatten(1, (self.H_sp, self.W_sp))
        return out


class Adaptive_Spatial_Attention(nn.Module):
    def __init__(self, dim=24, heads=4, split=(2, 4), shift=None, resolution=8):
        super().__init__()
        self.split_size, self.shift_size = list(split), list(shift or (0, 0))
        self.num_heads, self.shifted = heads, shift is not None
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)
        self.attns = nn.ModuleList(
            Spatial_Attention(dim // 2, sides, heads // 2) for sides in (split, split[::-1])
        )
        for number in (0, 1):
            mask = torch.zeros(1) if self.shifted else None
            self.register_buffer(f"attn_mask_{number}", mask)
        self.dwconv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.BatchNorm2d(dim), nn.GELU()
        )
        self.channel_interaction = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, dim // 8, 1),
            nn.BatchNorm2d(dim // 8),
            nn.GELU(),
            nn.Conv2d(dim // 8, dim, 1),
        )
        self.spatial_interaction = nn.Sequential(
            nn.Conv2d(dim, dim // 8, 1),
            nn.BatchNorm2d(dim // 8),
            nn.GELU(),
            nn.Conv2d(dim // 8, 1, 1),
        )

    def labels(self, size, sides, shift):
        bands = []
        for length, side, moved in zip(size, sides, shift, strict=True):
            place = torch.arange(length)
            bands.append((place >= length - side).int() + (place >= length - moved).int())
        return bands[0][:, None] * 3 + bands[1]

    def forward(self, x, H, W):
        qkv = self.qkv(x).unflatten(1, (H, W)).unflatten(-1, (3, -1)).permute(3, 0, 1, 2, 4)
        local = self.dwconv(qkv[2].permute(0, 3, 1, 2))
        unit = max(self.split_size)
        qkv = F.pad(qkv, (0, 0, 0, -W % unit, 0, -H % unit))
        found = []
        for number, part in enumerate(qkv.chunk(2, -1)):
            turn = -1 if number else 1
            sides, shift = self.split_size[::turn], self.shift_size[::turn]
            rolled = part.roll((-shift[0], -shift[1]), (2, 3)) if self.shifted else part
            labels = torch.zeros(rolled.shape[2:4])
            if self.shifted:
                labels = self.labels(rolled.shape[2:4], sides, shift)
            out = self.attns[number](rolled, labels)
            found.append(out.roll(shift, (1, 2)) if self.shifted else out)
        attended = torch.cat(found, -1)[:, :H, :W].permute(0, 3, 1, 2)
        channel_map = self.channel_interaction(local).sigmoid()
        spatial_map = self.spatial_interaction(attended).sigmoid()
        mixed = attended * channel_map + local * spatial_map
        return self.proj_drop(self.proj(mixed.flatten(2).transpose(1, 2)))


class SpatialGate(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class SGFN(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act = nn.Linear(dim, hidden), nn.GELU()
        self.sg = SpatialGate(hidden // 2)
        self.fc2, self.drop = nn.Linear(hidden // 2, dim), nn.Dropout(0.0)

    def forward(self, x, H, W):
        kept, gate = self.act(self.fc1(x)).chunk(2, -1)
        gate = self.sg.norm(gate).mT.unflatten(2, (H, W))
        return self.fc2(kept * self.sg.conv(gate).flatten(2).mT)


class DATB(nn.Module):
    def __init__(self, dim=24, **options):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Adaptive_Spatial_Attention(dim, **options)
        self.drop_path = nn.Identity()
        self.ffn = SGFN(dim, 2 * dim)

    def forward(self, x, x_size):
        x = x + self.drop_path(self.attn(self.norm1(x), *x_size))
        return x + self.drop_path(self.ffn(self.norm2(x), *x_size))
